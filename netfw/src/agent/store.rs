//! The store: the wanted state on disk, in one redb file.
//!
//! One table a kind of record, keys are names, values JSON. Every [`Store::commit`] is one
//! transaction and is on disk when it returns: a change is here before it is in the kernel, so
//! whatever instant the agent dies at, the next start finds the state before or after it.

use std::{
    io,
    path::{Path, PathBuf},
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};

use super::record::{Endpoint, Network, Node, Wanted};
use crate::name::Name;

/// Version of the records. A store of a newer version is refused, not guessed at; one of an older is read,
/// and becomes one of this. 2: endpoints have attachments. 3: they may say who
/// uses their publishes, which an older netfw would let everybody do.
pub const VERSION: u32 = 3;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const NETWORKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("networks");
const ENDPOINTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("endpoints");

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store {path} cannot be opened: {source}")]
    Open {
        path: PathBuf,
        source: Box<redb::Error>,
    },
    #[error("the directory {path} cannot be made: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("the store {path} cannot be read or written: {source}")]
    Access {
        path: PathBuf,
        source: Box<redb::Error>,
    },
    #[error(
        "the store {path} has version {found}, this netfw knows {VERSION}: use the netfw that wrote it"
    )]
    Version { path: PathBuf, found: u32 },
    #[error("the store {path} has a record {key:?} that cannot be read: {source}")]
    Record {
        path: PathBuf,
        key: String,
        source: serde_json::Error,
    },
}

/// One step of a transaction.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    Node(&'a Node),
    Network(&'a Network),
    NoNetwork(&'a Name),
    Endpoint(&'a Endpoint),
    NoEndpoint(&'a Name),
}

pub struct Store {
    database: Database,
    path: PathBuf,
}

impl Store {
    /// Opens the store, or makes one.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|source| StoreError::Directory {
                path: parent.to_owned(),
                source,
            })?;
        }
        let database = Database::create(path).map_err(|e| StoreError::Open {
            path: path.to_owned(),
            source: Box::new(e.into()),
        })?;
        let store = Self {
            database,
            path: path.to_owned(),
        };
        store.check_version()?;
        Ok(store)
    }

    fn access(&self, source: impl Into<redb::Error>) -> StoreError {
        StoreError::Access {
            path: self.path.clone(),
            source: Box::new(source.into()),
        }
    }

    fn check_version(&self) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(|e| self.access(e))?;
        let found: Option<u32> = {
            let mut table = transaction.open_table(META).map_err(|e| self.access(e))?;
            // Opened so that they exist: readers need not tell empty from missing.
            transaction
                .open_table(NETWORKS)
                .map_err(|e| self.access(e))?;
            transaction
                .open_table(ENDPOINTS)
                .map_err(|e| self.access(e))?;
            let found = match table.get("version").map_err(|e| self.access(e))? {
                Some(value) => Some(self.decode("version", value.value())?),
                None => None,
            };
            if found.is_none_or(|found| found < VERSION) {
                table
                    .insert("version", VERSION.to_string().as_bytes())
                    .map_err(|e| self.access(e))?;
            }
            found
        };
        match found {
            Some(VERSION) => Ok(()),
            Some(found) if found > VERSION => Err(StoreError::Version {
                path: self.path.clone(),
                found,
            }),
            _ => transaction.commit().map_err(|e| self.access(e)),
        }
    }

    fn decode<T: DeserializeOwned>(&self, key: &str, bytes: &[u8]) -> Result<T, StoreError> {
        serde_json::from_slice(bytes).map_err(|source| StoreError::Record {
            path: self.path.clone(),
            key: key.to_owned(),
            source,
        })
    }

    pub fn load(&self) -> Result<Wanted, StoreError> {
        let transaction = self.database.begin_read().map_err(|e| self.access(e))?;
        let mut wanted = Wanted::default();
        let meta = transaction.open_table(META).map_err(|e| self.access(e))?;
        if let Some(value) = meta.get("node").map_err(|e| self.access(e))? {
            wanted.node = Some(self.decode("node", value.value())?);
        }
        let networks = transaction
            .open_table(NETWORKS)
            .map_err(|e| self.access(e))?;
        for entry in networks.iter().map_err(|e| self.access(e))? {
            let (key, value) = entry.map_err(|e| self.access(e))?;
            let network: Network = self.decode(key.value(), value.value())?;
            wanted.networks.insert(network.name.clone(), network);
        }
        let endpoints = transaction
            .open_table(ENDPOINTS)
            .map_err(|e| self.access(e))?;
        for entry in endpoints.iter().map_err(|e| self.access(e))? {
            let (key, value) = entry.map_err(|e| self.access(e))?;
            let endpoint: Endpoint = self.decode(key.value(), value.value())?;
            wanted.endpoints.insert(endpoint.name.clone(), endpoint);
        }
        Ok(wanted)
    }

    /// All of `changes` or, where an error is returned, none.
    pub fn commit(&self, changes: &[Change<'_>]) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(|e| self.access(e))?;
        for change in changes {
            match change {
                Change::Node(node) => self.put(&transaction, META, "node", node)?,
                Change::Network(n) => self.put(&transaction, NETWORKS, &n.name, n)?,
                Change::NoNetwork(name) => self.delete(&transaction, NETWORKS, name)?,
                Change::Endpoint(e) => self.put(&transaction, ENDPOINTS, &e.name, e)?,
                Change::NoEndpoint(name) => self.delete(&transaction, ENDPOINTS, name)?,
            }
        }
        transaction.commit().map_err(|e| self.access(e))
    }

    fn put(
        &self,
        transaction: &redb::WriteTransaction,
        table: TableDefinition<'_, &str, &[u8]>,
        key: &str,
        record: &impl Serialize,
    ) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(record).map_err(|source| StoreError::Record {
            path: self.path.clone(),
            key: key.to_owned(),
            source,
        })?;
        transaction
            .open_table(table)
            .map_err(|e| self.access(e))?
            .insert(key, bytes.as_slice())
            .map_err(|e| self.access(e))?;
        Ok(())
    }

    fn delete(
        &self,
        transaction: &redb::WriteTransaction,
        table: TableDefinition<'_, &str, &[u8]>,
        key: &str,
    ) -> Result<(), StoreError> {
        transaction
            .open_table(table)
            .map_err(|e| self.access(e))?
            .remove(key)
            .map_err(|e| self.access(e))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        agent::{
            ipam::Pool,
            record::{Attachment, Mode, Published, Target},
        },
        publish::PortRange,
        rules::Rules,
    };

    fn network() -> Network {
        Network {
            name: "bridge".parse().unwrap(),
            number: 1,
            bridge: "netfw0".into(),
            mac: "02:6e:ac:12:00:01".parse().unwrap(),
            v4: Some(Pool::new("172.18.0.0/16".parse().unwrap(), None).unwrap()),
            v6: Some(Pool::new("fd00:1:2::/64".parse().unwrap(), None).unwrap()),
            mtu: None,
            rules: Rules::default(),
            labels: Default::default(),
        }
    }

    fn endpoint(name: &str) -> Endpoint {
        let spec: crate::publish::Spec = "8080-8090:80-90/udp".parse().unwrap();
        Endpoint {
            name: name.parse().unwrap(),
            mode: Mode::Networks,
            namespace: Target {
                path: "/run/netns/x".into(),
                made: true,
                id: Some((4, 4026531840)),
            },
            attachments: vec![Attachment {
                network: "bridge".parse().unwrap(),
                ip4: Some("172.18.0.2".parse().unwrap()),
                ip6: Some("fd00:1:2::2".parse().unwrap()),
                mac: "02:6e:ac:12:00:02".parse().unwrap(),
                host_interface: "nf1".into(),
                interface: "eth0".into(),
                aliases: Vec::new(),
                removing: false,
            }],
            counter: 1,
            publishes: vec![Published {
                publish: spec.resolve(Ipv4Addr::UNSPECIFIED.into(), spec.container_ports),
                counter: 2,
                allow_from: vec!["10.0.0.0/8".parse().unwrap()].into(),
            }],
            allow_from: vec!["fd00::1".parse().unwrap()].into(),
            exposed: Vec::new(),
            links: Vec::new(),
            removing: false,
        }
    }

    #[test]
    fn what_is_committed_is_there_after_opening_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state.redb");
        let node = Node {
            netns: Some("/run/netns/n".into()),
            id: (4, 5),
            boot: "b".into(),
            prefix6: Some("fd00:1:2::/48".parse().unwrap()),
        };
        {
            let store = Store::open(&path).unwrap();
            assert_eq!(store.load().unwrap(), Wanted::default());
            store
                .commit(&[
                    Change::Node(&node),
                    Change::Network(&network()),
                    Change::Endpoint(&endpoint("a")),
                    Change::Endpoint(&endpoint("b")),
                ])
                .unwrap();
            store
                .commit(&[Change::NoEndpoint(&"a".parse().unwrap())])
                .unwrap();
        }
        let wanted = Store::open(&path).unwrap().load().unwrap();
        assert_eq!(wanted.node, Some(node));
        assert_eq!(wanted.networks.values().collect::<Vec<_>>(), [&network()]);
        assert_eq!(
            wanted.endpoints.values().collect::<Vec<_>>(),
            [&endpoint("b")]
        );
        assert_eq!(wanted.counters().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_store_of_an_older_version_becomes_one_of_this() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let version = |store: &Store| {
            let transaction = store.database.begin_read().unwrap();
            let table = transaction.open_table(META).unwrap();
            let value = table.get("version").unwrap().unwrap();
            String::from_utf8(value.value().to_vec()).unwrap()
        };
        {
            let store = Store::open(&path).unwrap();
            let transaction = store.database.begin_write().unwrap();
            transaction
                .open_table(META)
                .unwrap()
                .insert("version", b"1".as_slice())
                .unwrap();
            transaction.commit().unwrap();
            assert_eq!(version(&store), "1");
        }
        assert_eq!(version(&Store::open(&path).unwrap()), VERSION.to_string());
    }

    /// Word for word what netfw 0.1.0 wrote before it knew IPv6.
    #[test]
    fn a_store_without_ipv6_is_read() {
        let network: Network = serde_json::from_str(
            r#"{"name":"bridge","number":1,"bridge":"netfw0","mac":"02:6e:ac:12:00:01",
                "subnet":"172.18.0.0/16","gateway":"172.18.0.1","last":"172.18.0.1"}"#,
        )
        .unwrap();
        let want = Network {
            v6: None,
            ..self::network()
        };
        assert_eq!(network, want);
        let endpoint: Endpoint = serde_json::from_str(
            r#"{"name":"a","network":"bridge",
                "namespace":{"path":"/run/netns/x","made":true,"id":[4,4026531840]},
                "ip4":"172.18.0.2","mac":"02:6e:ac:12:00:02","host_interface":"nf1",
                "interface":"eth0","counter":1,"removing":false,"publishes":[{"publish":
                {"protocol":"udp","host_ip":"0.0.0.0","host_ports":{"first":8080,"last":8090},
                "container_ports":{"first":80,"last":90}},"counter":2}]}"#,
        )
        .unwrap();
        let mut want = self::endpoint("a");
        want.attachments[0].ip6 = None;
        // Nor did it know who may use a publish.
        want.allow_from = Default::default();
        want.publishes[0].allow_from = Default::default();
        want.publishes[0].publish.host_ports = PortRange {
            first: 8080,
            last: 8090,
        };
        assert_eq!(endpoint, want);
        let node: Node = serde_json::from_str(r#"{"netns":null,"id":[4,5],"boot":"b"}"#).unwrap();
        assert_eq!(node.prefix6, None);
    }

    #[test]
    fn an_endpoint_comes_back_with_all_its_attachments() {
        let mut endpoint = endpoint("a");
        let mut second = endpoint.attachments[0].clone();
        second.network = "app".parse().unwrap();
        second.removing = true;
        second.aliases = vec!["www".parse().unwrap()];
        endpoint.attachments.push(second);
        endpoint.removing = true;
        endpoint.links = vec!["db:database".parse().unwrap()];
        endpoint.exposed = vec!["53/udp".parse().unwrap()];
        let mut sharing = endpoint.clone();
        sharing.mode = Mode::Container("web".parse().unwrap());
        sharing.attachments.clear();
        for endpoint in [endpoint, sharing] {
            let text = serde_json::to_string(&endpoint).unwrap();
            let read: Endpoint = serde_json::from_str(&text).unwrap();
            assert_eq!(read, endpoint, "{text}");
        }
    }

    #[test]
    fn a_network_of_one_family_stays_one() {
        for (v4, v6) in [(true, false), (false, true)] {
            let mut network = network();
            network.v4 = network.v4.filter(|_| v4);
            network.v6 = network.v6.filter(|_| v6);
            let text = serde_json::to_string(&network).unwrap();
            assert_eq!(
                serde_json::from_str::<Network>(&text).unwrap(),
                network,
                "{text}"
            );
        }
    }

    #[test]
    fn a_newer_store_and_a_broken_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        {
            let store = Store::open(&path).unwrap();
            let transaction = store.database.begin_write().unwrap();
            transaction
                .open_table(META)
                .unwrap()
                .insert("version", (VERSION + 1).to_string().as_bytes())
                .unwrap();
            transaction.commit().unwrap();
        }
        assert!(matches!(
            Store::open(&path),
            Err(StoreError::Version { found, .. }) if found == VERSION + 1
        ));
        std::fs::write(&path, b"not a store").unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::Open { .. })));
    }
}
