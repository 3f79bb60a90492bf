//! What `docker run -p` says, as dockerd hands it on.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::Value;

use super::{
    DriverError,
    message::{PORT_MAP, PortBinding},
};
use crate::publish::{PortRange, Protocol, Spec};

/// The publishes that `options` ask for.
pub(super) fn specs(options: &BTreeMap<String, Value>) -> Result<Vec<Spec>, DriverError> {
    let Some(bindings) = options.get(PORT_MAP).filter(|value| !value.is_null()) else {
        return Ok(Vec::new());
    };
    let bindings: Vec<PortBinding> = serde_json::from_value(bindings.clone())
        .map_err(|error| DriverError::Request(format!("{PORT_MAP}: {error}")))?;
    bindings.iter().map(spec).collect()
}

fn spec(binding: &PortBinding) -> Result<Spec, DriverError> {
    let wrong = |what: String| DriverError::Port(format!("{}: {what}", binding.port));
    let numbers = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let protocol = numbers.into_iter().find(|p| p.number() == binding.proto);
    let protocol = protocol.ok_or_else(|| {
        wrong(format!(
            "protocol {} has no ports that netfw knows",
            binding.proto
        ))
    })?;
    let host_ip = match binding.host_ip.as_str() {
        "" => None,
        text => Some(
            text.parse::<IpAddr>()
                .map_err(|_| wrong(format!("{text:?} is no address")))?
                .to_canonical(),
        ),
    };
    let single = |port| PortRange {
        first: port,
        last: port,
    };
    if binding.port == 0 {
        return Err(wrong("0 is no port".into()));
    }
    let (first, last) = (binding.host_port, binding.host_port_end);
    let (host_ports, choice) = match (first, last) {
        (0, _) => (None, None),
        (first, last) if last <= first => (Some(single(first)), None),
        (first, last) => (None, Some(PortRange { first, last })),
    };
    Ok(Spec {
        host_ip,
        host_ports,
        choice,
        container_ports: single(binding.port),
        protocol,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(bindings: Value) -> Result<Vec<String>, String> {
        let options = BTreeMap::from([(PORT_MAP.to_owned(), bindings)]);
        let specs = specs(&options).map_err(|error| error.to_string())?;
        Ok(specs.iter().map(Spec::to_string).collect())
    }

    #[test]
    fn what_docker_run_says() {
        // `-p 9000-9005:90/udp -p [::1]:82:82 -p 127.0.0.1::81 -p 8080:80`, as dockerd 20.10 hands it on.
        let all = json!([
            {"Proto": 17, "IP": "", "Port": 90, "HostIP": "", "HostPort": 9000, "HostPortEnd": 9005},
            {"Proto": 6, "IP": "", "Port": 82, "HostIP": "::1", "HostPort": 82, "HostPortEnd": 82},
            {"Proto": 6, "IP": "", "Port": 81, "HostIP": "127.0.0.1", "HostPort": 0, "HostPortEnd": 0},
            {"Proto": 132, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080},
        ]);
        let expected = [
            "9000-9005:90/udp",
            "[::1]:82:82",
            "127.0.0.1::81",
            "8080:80/sctp",
        ];
        let expected: Vec<Spec> = expected.map(|text| text.parse().unwrap()).into();
        let options = BTreeMap::from([(PORT_MAP.to_owned(), all)]);
        assert_eq!(specs(&options).unwrap(), expected);
        assert_eq!(parsed(Value::Null).unwrap(), [""; 0]);
        assert!(specs(&BTreeMap::new()).unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (wrong, says) in [
            (json!([{"Proto": 1, "Port": 80}]), "protocol 1"),
            (json!([{"Proto": 6, "Port": 0}]), "0 is no port"),
            (
                json!([{"Proto": 6, "Port": 80, "HostIP": "localhost"}]),
                "\"localhost\" is no address",
            ),
            (json!([{"Port": 80}]), "missing field `Proto`"),
            (json!({"80": 80}), "com.docker.network.portmap"),
        ] {
            let error = parsed(wrong).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
