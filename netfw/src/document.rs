//! The wanted state as people write it: networks and endpoints in one TOML document, for `netfw apply`.
//!
//! What a document does not say of something that it names has its default; what is chosen (subnets,
//! addresses, host ports) stays as it was chosen before. Over the API it is the same, as JSON.

use std::{
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use toml::de::{DeTable, DeValue};

use crate::{
    api::types::{Fault, NetworkRequest},
    mode::Mode,
    name::{Mac, Name, NameLink},
    publish::{Exposed, Spec},
    rules::{Filter, Nat},
    source::Sources,
};

#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Document {
    pub networks: BTreeMap<Name, Network>,
    pub endpoints: BTreeMap<Name, Endpoint>,
}

/// As `network create` has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<IpAddr>,
    /// None: as the default network has it, or else not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub internal: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub routed: bool,
    #[serde(skip_serializing_if = "Clone::clone")]
    pub masquerade: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub nat: Nat,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            subnets: Vec::new(),
            gateways: Vec::new(),
            ipv6: None,
            internal: false,
            routed: false,
            masquerade: true,
            nat: Nat::default(),
            filter: None,
            mtu: None,
            labels: BTreeMap::new(),
        }
    }
}

impl Network {
    /// To create it.
    pub fn request(&self, name: Name) -> NetworkRequest {
        NetworkRequest {
            name,
            subnets: self.subnets.clone(),
            gateways: self.gateways.clone(),
            ipv6: self.ipv6.unwrap_or_default(),
            internal: self.internal,
            routed: self.routed,
            masquerade: self.masquerade,
            nat: self.nat,
            filter: self.filter,
            mtu: self.mtu,
            labels: self.labels.clone(),
        }
    }
}

#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Endpoint {
    /// A name under `/run/netns`, or a path; neither this nor a process: a namespace of the endpoint's name
    /// is made, and goes with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// The namespace of this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// `none`, `host`, `container:NAME`, in place of networks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_mode: Option<Mode>,
    /// In this order: the first that leads out has the default route. None: `bridge`.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "some_words_or_tables",
        serialize_with = "some_shortest"
    )]
    pub networks: Option<Vec<Attachment>>,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "words_or_tables",
        serialize_with = "shortest"
    )]
    pub publish: Vec<Publish>,
    /// Who may use publishes that have no list of their own; empty: the agent's default.
    #[serde(skip_serializing_if = "Sources::is_empty")]
    pub allow_from: Sources,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "from_words",
        serialize_with = "as_words"
    )]
    pub expose: Vec<Exposed>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<NameLink>,
}

/// A network's name, or a table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    pub network: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Name>,
}

impl Attachment {
    /// With nothing said but the network.
    pub fn to(network: Name) -> Self {
        Self {
            network,
            ip: None,
            ip6: None,
            mac: None,
            aliases: Vec::new(),
        }
    }
}

/// A publish, or a table of it and who may use it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    pub publish: Spec,
    #[serde(default, skip_serializing_if = "Sources::is_empty")]
    pub allow_from: Sources,
}

/// What can be written as a word where there is no more to say.
trait Short: Sized {
    fn of_word(word: &str) -> Result<Self, String>;
    fn word(&self) -> Option<String>;
}

impl Short for Attachment {
    fn of_word(word: &str) -> Result<Self, String> {
        word.parse().map(Self::to).map_err(|e| format!("{e}"))
    }

    fn word(&self) -> Option<String> {
        (*self == Self::to(self.network.clone())).then(|| self.network.to_string())
    }
}

impl Short for Publish {
    fn of_word(word: &str) -> Result<Self, String> {
        Ok(Self {
            publish: word.parse().map_err(|e| format!("{e}"))?,
            allow_from: Sources::default(),
        })
    }

    fn word(&self) -> Option<String> {
        self.allow_from.is_empty().then(|| self.publish.to_string())
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A [`Short`], word or table.
struct WordOrTable<T>(T);

impl<'de, T: Short + Deserialize<'de>> Deserialize<'de> for WordOrTable<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Short + Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a table")
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<T, E> {
                T::of_word(word).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_any(Either(PhantomData)).map(Self)
    }
}

fn words_or_tables<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Short + Deserialize<'de>,
    D: Deserializer<'de>,
{
    let all = Vec::<WordOrTable<T>>::deserialize(deserializer)?;
    Ok(all.into_iter().map(|one| one.0).collect())
}

fn some_words_or_tables<'de, T, D>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    T: Short + Deserialize<'de>,
    D: Deserializer<'de>,
{
    words_or_tables(deserializer).map(Some)
}

fn some_shortest<T, S>(all: &Option<Vec<T>>, serializer: S) -> Result<S::Ok, S::Error>
where
    T: Short + Serialize,
    S: Serializer,
{
    shortest(all.as_deref().unwrap_or_default(), serializer)
}

fn shortest<T, S>(all: &[T], serializer: S) -> Result<S::Ok, S::Error>
where
    T: Short + Serialize,
    S: Serializer,
{
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Either<'a, T> {
        Word(String),
        Table(&'a T),
    }
    serializer.collect_seq(all.iter().map(|one| match one.word() {
        Some(word) => Either::Word(word),
        None => Either::Table(one),
    }))
}

fn from_words<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: FromStr<Err: fmt::Display>,
    D: Deserializer<'de>,
{
    let words = Vec::<String>::deserialize(deserializer)?;
    let all = words.iter().map(|word| word.parse());
    all.collect::<Result<_, _>>()
        .map_err(serde::de::Error::custom)
}

fn as_words<T: fmt::Display, S: Serializer>(all: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(all.iter().map(T::to_string))
}

impl FromStr for Document {
    type Err = toml::de::Error;

    fn from_str(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&toml::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// The line in `text` of the key that a fault is about, from 1; or of the nearest that is around it.
pub fn line_of(text: &str, fault: &Fault) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = Some(document.get_ref());
    let mut array = None;
    let mut start = None;
    for part in &fault.at {
        let found = match (table, array) {
            (Some(table), _) => table
                .get_key_value(part.as_str())
                .map(|(key, value)| (key.span().start, value)),
            (None, Some(array)) => {
                let array: &toml::de::DeArray<'_> = array;
                let value = part.parse().ok().and_then(|n: usize| array.get(n));
                value.map(|value| (value.span().start, value))
            }
            (None, None) => None,
        };
        let Some((at, value)) = found else { break };
        start = Some(at);
        (table, array) = match value.get_ref() {
            DeValue::Table(inner) => (Some(inner), None),
            DeValue::Array(inner) => (None, Some(inner)),
            _ => (None, None),
        };
    }
    let before = text.get(..start?)?;
    Some(before.matches('\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[networks.app]
subnets = ["10.9.0.0/24", "fd00:9::/64"]
internal = true
labels = { team = "blue" }

[endpoints.db]
netns = "db"
networks = ["app"]

[endpoints.web]
networks = [
  "bridge",
  { network = "app", ip = "10.9.0.5", aliases = ["www"] },
]
publish = [
  "8080:80",
  { publish = "8443:443", allow_from = ["10.0.0.0/8"] },
]
expose = ["80/tcp"]
links = ["db:database"]

[endpoints."x.y"]
network_mode = "container:web"
"#;

    #[test]
    fn what_is_written_is_read() {
        let document: Document = TEXT.parse().unwrap();
        let web = &document.endpoints[&"web".parse::<Name>().unwrap()];
        let networks = web.networks.as_deref().unwrap();
        assert_eq!(networks.len(), 2);
        assert_eq!(networks[1].ip, Some([10, 9, 0, 5].into()));
        assert_eq!(web.publish[0].publish.to_string(), "8080:80/tcp");
        assert_eq!(web.publish[1].allow_from.to_string(), "10.0.0.0/8");
        let again: Document = document.to_string().parse().unwrap();
        assert_eq!(again, document);
        let json = serde_json::to_string(&document).unwrap();
        assert_eq!(serde_json::from_str::<Document>(&json).unwrap(), document);
        assert_eq!("".parse::<Document>().unwrap(), Document::default());
    }

    #[test]
    fn what_is_wrong_is_found_in_its_line() {
        for (text, line, phrase) in [
            ("[endpoint.web]", 1, "unknown field `endpoint`"),
            ("[endpoints.web]\n\nport = [80]", 3, "unknown field `port`"),
            ("[endpoints.\"a/b\"]", 1, "a/b"),
            (
                "[endpoints.a]\npublish = [\n\"1:2\",\n\"80:x\"]",
                4,
                "is no port",
            ),
            ("[endpoints.a]\npublish = [80]", 2, "a string or a table"),
            (
                "[endpoints.a]\nnetworks = [{ ip = \"10.0.0.1\" }]",
                2,
                "missing field `network`",
            ),
            (
                "[endpoints.a]\nnetworks = [{ network = \"n\", port = 1 }]",
                2,
                "unknown field `port`",
            ),
            ("[networks.a]\nmtu = -1", 2, "-1"),
            ("[networks.a]\n[networks.a]", 2, "duplicate key"),
        ] {
            let error = text.parse::<Document>().unwrap_err().to_string();
            assert!(error.contains(&format!("line {line}")), "{text}: {error}");
            assert!(error.contains(phrase), "{text}: {error}");
        }
    }

    #[test]
    fn a_fault_has_its_line() {
        for (at, line) in [
            (&["networks", "app", "subnets", "1"][..], Some(3)),
            (&["networks", "app", "mtu"], Some(2)),
            (&["endpoints", "web", "networks", "1", "ip"], Some(14)),
            (&["endpoints", "web", "publish", "1"], Some(18)),
            (&["endpoints", "x.y"], Some(23)),
            (&["endpoints", "nobody"], Some(7)),
            (&["nothing"], None),
        ] {
            let fault = Fault {
                at: at.iter().map(|&part| part.to_owned()).collect(),
                error: String::new(),
            };
            assert_eq!(line_of(TEXT, &fault), line, "{at:?}");
        }
    }
}
