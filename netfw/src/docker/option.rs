//! What `docker network create` says of a network, and its `-o KEY=VALUE`: as `netfw network create` has it, and
//! by the names that Docker's bridge driver has for the same.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde_json::Value;

use super::message::{GENERIC, INTERNAL};
use crate::{api::types::NetworkRequest, document, name::Name, owner::short};

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum OptionError {
    #[error(
        "netfw knows no option {0:?}: name, mtu, nat, filter, routed, masquerade are known, and \
         com.docker.network.driver.mtu, com.docker.network.bridge.enable_ip_masquerade"
    )]
    Unknown(String),
    #[error("the option {key}={value}: {why}")]
    Value {
        key: String,
        value: String,
        why: String,
    },
    #[error("the network id {0:?} is none of Docker's")]
    Id(String),
}

/// The network that Docker wants to have made, but for its subnets.
pub(super) fn request(
    id: &str,
    options: &BTreeMap<String, Value>,
) -> Result<NetworkRequest, OptionError> {
    let name = format!("docker-{}", short(id));
    let name: Name = name.parse().map_err(|_| OptionError::Id(id.into()))?;
    let mut request = document::Network::default().request(name);
    request.internal = options.get(INTERNAL).is_some_and(|value| value == true);
    let generic = options.get(GENERIC).and_then(Value::as_object);
    for (key, value) in generic.into_iter().flatten() {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        set(&mut request, key, &text)?;
    }
    Ok(request)
}

fn set(request: &mut NetworkRequest, key: &str, value: &str) -> Result<(), OptionError> {
    let wrong = |why: String| OptionError::Value {
        key: key.into(),
        value: value.into(),
        why,
    };
    // As Go's strconv.ParseBool, which Docker's own drivers have.
    let yes = || match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(wrong("say true or false".into())),
    };
    match key {
        "name" => request.name = value.parse().map_err(|error| wrong(format!("{error}")))?,
        "mtu" | "com.docker.network.driver.mtu" => {
            let mtu = value.parse();
            request.mtu = Some(mtu.map_err(|_| wrong("that is no number of bytes".into()))?);
        }
        "masquerade" | "com.docker.network.bridge.enable_ip_masquerade" => {
            request.masquerade = yes()?;
        }
        "routed" => request.routed = yes()?,
        "nat" => request.nat = choice(value).map_err(wrong)?,
        "filter" => request.filter = Some(choice(value).map_err(wrong)?),
        _ => return Err(OptionError::Unknown(key.into())),
    }
    Ok(())
}

fn choice<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let all = T::value_variants().iter().filter_map(T::to_possible_value);
        let names: Vec<String> = all.map(|value| value.get_name().to_owned()).collect();
        format!("say {}", names.join(" or "))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rules::{Filter, Nat};

    const ID: &str = "c875d97a11bb22cc33dd44ee55ff66778899aabbccddeeff0011223344556677";

    fn parsed(options: Value) -> Result<NetworkRequest, String> {
        let options = serde_json::from_value(options).unwrap();
        request(ID, &options).map_err(|error| error.to_string())
    }

    #[test]
    fn options_of_both_kinds() {
        let plain = parsed(json!({"com.docker.network.enable_ipv6": true})).unwrap();
        assert_eq!(plain.name.as_str(), "docker-c875d97a11bb");
        assert!(!plain.internal && plain.masquerade && !plain.ipv6);
        let all = parsed(json!({
            INTERNAL: true,
            GENERIC: {
                "name": "app", "mtu": "1400", "nat": "endpoint-independent", "filter": "address-dependent",
                "com.docker.network.bridge.enable_ip_masquerade": "false",
            },
        }));
        let all = all.unwrap();
        assert!(all.internal && !all.masquerade);
        assert_eq!((all.name.as_str(), all.mtu), ("app", Some(1400)));
        assert_eq!(all.nat, Nat::EndpointIndependent);
        assert_eq!(all.filter, Some(Filter::AddressDependent));
        assert_eq!(
            parsed(json!({GENERIC: {"com.docker.network.driver.mtu": "9000"}}))
                .unwrap()
                .mtu,
            Some(9000)
        );
        assert!(parsed(json!({GENERIC: null})).is_ok());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (wrong, says) in [
            (json!({"icc": "false"}), "knows no option \"icc\""),
            (json!({"mtu": "big"}), "mtu=big: that is no number"),
            (json!({"routed": "yes"}), "routed=yes: say true or false"),
            (
                json!({"nat": "full"}),
                "say port-restricted or endpoint-independent",
            ),
            (json!({"name": "-"}), "must begin with"),
        ] {
            let error = parsed(json!({ GENERIC: wrong })).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(request("../..", &BTreeMap::new()).is_err());
    }
}
