//! ADD, DEL, CHECK, GC and STATUS.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use serde_json::Value;

use super::{
    call::{Call, Command},
    check::Previous,
    config::{Config, address},
    error::CniError,
    ipam::{Given, Ipam},
    result,
    version::Version,
};
use crate::{
    api::{
        client::{Client, ClientError},
        owned::{AttachRequest, CollectRequest, Owned},
    },
    name::{self, Mac, Name},
    net::Namespace,
    owner::Owner,
};

/// An agent that is there says so in this time, however busy it is. The runtime is to hear within a second
/// that there is none.
const PATIENCE: Duration = Duration::from_millis(700);

/// What the command answers, if anything. `text` is the configuration as it came.
pub async fn run(
    call: &Call,
    config: &Config,
    version: Version,
    text: &[u8],
) -> Result<Option<Value>, CniError> {
    match call.command {
        Command::Add => add(call, config, version, text).await.map(Some),
        Command::Del => del(call, config, text).await.map(|()| None),
        Command::Check => check(call, config, text).await.map(|()| None),
        Command::Gc => gc(call, config, text).await.map(|()| None),
        Command::Status => status(call, config, text).await.map(|()| None),
        // Is answered without a configuration.
        Command::Version => Ok(None),
    }
}

async fn add(
    call: &Call,
    config: &Config,
    version: Version,
    text: &[u8],
) -> Result<Value, CniError> {
    config.check_fields()?;
    let arguments = call.arguments()?;
    let mac = config
        .mac()?
        .map_or_else(|| mac(&arguments), |mac| Ok(Some(mac)))?;
    let mut request = AttachRequest {
        attachment: owned(config, &call.container, &call.interface),
        names: names(&call.container, &arguments),
        network: config.wish()?,
        namespace: std::path::absolute(&call.netns)
            .map_err(|error| CniError::environment(&["CNI_NETNS"], error.to_string()))?,
        ip: None,
        ip6: None,
        mac,
        aliases: config.aliases()?,
        publish: config.publishes()?,
        allow_from: config.allow_from.clone(),
    };
    let mut ips = config.ips()?;
    if ips.is_empty() {
        ips.extend(ip(&arguments)?);
    }
    let ipam = Ipam::of(call, config, text)?;
    namespace(call)?;
    let client = ready(config).await?;
    let mut given = Given::default();
    if let Some(ipam) = &ipam {
        // It was asked for those addresses itself.
        given = ipam.add()?;
        given.complete(&mut request.network);
        ips = given.ips.iter().map(|ip| ip.addr()).collect();
    }
    let attached = match choose(&mut request, &ips) {
        Ok(()) => client.attach(&request).await.map_err(CniError::from),
        Err(error) => Err(error),
    };
    let attached = attached.inspect_err(|_| {
        if let Some(ipam) = &ipam {
            ipam.give_back();
        }
    })?;
    let network = &attached.network;
    let own = [network.gateway, network.gateway6].into_iter().flatten();
    let dns = config.result_dns(own.collect(), given.dns);
    result::success(version, &call.netns, &attached, &dns)
}

/// Best effort: what is gone already is no error.
async fn del(call: &Call, config: &Config, text: &[u8]) -> Result<(), CniError> {
    let client = ready(config).await?;
    client
        .detach(&owned(config, &call.container, &call.interface))
        .await?;
    pass_on(call, config, text)
}

/// To the plugin that chooses addresses, where there is one.
fn pass_on(call: &Call, config: &Config, text: &[u8]) -> Result<(), CniError> {
    match Ipam::of(call, config, text)? {
        None => Ok(()),
        Some(ipam) => ipam.pass_on(call.command),
    }
}

async fn check(call: &Call, config: &Config, text: &[u8]) -> Result<(), CniError> {
    let previous = Previous::of(config.prev_result.as_ref())?;
    let namespace = namespace(call)?;
    let client = ready(config).await?;
    let checked = client
        .check(&owned(config, &call.container, &call.interface))
        .await?;
    let Some(attached) = checked.attached else {
        return Err(CniError::unknown_container(format!(
            "the agent knows no {} of container {} in network {}",
            call.interface, call.container, config.name
        )));
    };
    let mut faults = checked.faults;
    let wish = config.wish()?;
    if let Some(what) = wish.unfulfilled(&attached.network) {
        faults.push(format!("network {}: {what}", wish.name));
    }
    let attachment = result::of_network(&attached.endpoint, &attached.network.name)?;
    previous.compare(call, attachment, &mut faults);
    let same = Namespace::at_path(&attached.endpoint.netns);
    if same.is_ok_and(|same| same != namespace) {
        let netns = attached.endpoint.netns.display();
        faults.push(format!("the attachment is in another namespace, {netns}"));
    }
    let publishes = config.publishes()?;
    let there = &attached.endpoint.publishes;
    let there = |spec: &crate::publish::Spec| there.iter().any(|p| spec.names(&p.clone().into()));
    let missing = publishes.iter().filter(|spec| !there(spec));
    faults.extend(missing.map(|spec| format!("{spec} is not published")));
    let made = (attachment, attached.network.mtu);
    previous
        .look(call, &namespace, made, &mut faults)
        .await
        .map_err(|error| CniError::internal(&error))?;
    if !faults.is_empty() {
        return Err(CniError::drift(&faults));
    }
    pass_on(call, config, text)
}

/// Goes on past errors.
async fn gc(call: &Call, config: &Config, text: &[u8]) -> Result<(), CniError> {
    let valid = config.valid_attachments()?;
    let client = ready(config).await?;
    let request = CollectRequest {
        network: config.name.clone(),
        valid: valid
            .iter()
            .map(|(container, interface)| owned(config, container, interface))
            .collect(),
    };
    let collected = client.collect(&request).await?;
    let passed = pass_on(call, config, text);
    match collected.failures.is_empty() {
        true => passed,
        false => Err(CniError::failed(&collected.failures)),
    }
}

async fn status(call: &Call, config: &Config, text: &[u8]) -> Result<(), CniError> {
    ready(config).await.map_err(CniError::as_status)?;
    pass_on(call, config, text)
}

/// The agent, which answers.
async fn ready(config: &Config) -> Result<Client, CniError> {
    let instance = config.instance()?;
    let client = Client::new(&instance);
    match tokio::time::timeout(PATIENCE, client.version()).await {
        // One that does not know the question is there as well.
        Ok(Ok(_) | Err(ClientError::Refused { .. })) => Ok(client),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(CniError::again(format!(
            "the agent of instance {instance} has not answered for {} ms: it starts, hangs or is stopped",
            PATIENCE.as_millis()
        ))),
    }
}

/// `CNI_NETNS`.
fn namespace(call: &Call) -> Result<Namespace, CniError> {
    let wrong = |details: String| CniError::environment(&["CNI_NETNS"], details);
    let namespace = Namespace::at_path(&call.netns).map_err(|error| wrong(crate::chain(&error)))?;
    match Namespace::current() {
        Ok(own) if own == namespace => {
            let netns = call.netns.display();
            Err(wrong(format!(
                "{netns} is the namespace of the runtime itself"
            )))
        }
        _ => Ok(namespace),
    }
}

fn owned(config: &Config, container: &str, interface: &str) -> Owned {
    Owned {
        owner: Owner::Cni {
            container: container.to_owned(),
            network: config.name.clone(),
        },
        interface: interface.to_owned(),
    }
}

/// For the endpoint: the pod's or container's name, where the caller says one, else the container's ID.
fn names(container: &str, arguments: &BTreeMap<&str, &str>) -> Vec<Name> {
    let pod = arguments.get("K8S_POD_NAME").copied();
    let namespace = arguments.get("K8S_POD_NAMESPACE").copied();
    // Pods of one name may live in several of Kubernetes' namespaces; podman has the container's name in both.
    let full = pod
        .zip(namespace)
        .filter(|(pod, namespace)| pod != namespace);
    let full = full.map(|(pod, namespace)| format!("{pod}.{namespace}"));
    let id = container.get(..name::MAX).unwrap_or(container);
    let all = [pod.map(str::to_owned), full, Some(id.to_owned())];
    all.into_iter()
        .flatten()
        .filter_map(|name| name.parse().ok())
        .collect()
}

fn mac(arguments: &BTreeMap<&str, &str>) -> Result<Option<Mac>, CniError> {
    let mac = arguments.get("MAC").map(|text| text.parse::<Mac>());
    let mac = mac.transpose();
    mac.map_err(|error| CniError::environment(&["CNI_ARGS"], format!("MAC: {error}")))
}

fn ip(arguments: &BTreeMap<&str, &str>) -> Result<Option<IpAddr>, CniError> {
    let ip = arguments.get("IP").map(|text| address(text));
    let ip = ip.transpose();
    ip.map_err(|why| CniError::environment(&["CNI_ARGS"], format!("IP: {why}")))
}

/// The addresses that are asked for, one of each family.
fn choose(request: &mut AttachRequest, ips: &[IpAddr]) -> Result<(), CniError> {
    for ip in ips {
        let (ip4, ip6) = (&mut request.ip, &mut request.ip6);
        let before = match ip {
            IpAddr::V4(ip) => ip4.replace(*ip).map(IpAddr::V4),
            IpAddr::V6(ip) => ip6.replace(*ip).map(IpAddr::V6),
        };
        if let Some(before) = before {
            return Err(CniError::config(format!(
                "ips: {before} and {ip}: an interface has one address of each family"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_called_as_people_know_the_container() {
        let id = "0123456789abcdef".repeat(4);
        let names = |arguments: &[(&'static str, &'static str)]| {
            let arguments = arguments.iter().copied().collect();
            let names = names(&id, &arguments);
            names.iter().map(Name::to_string).collect::<Vec<_>>()
        };
        let short = &id[..63];
        assert_eq!(names(&[]), [short]);
        let pod = [("K8S_POD_NAME", "web"), ("K8S_POD_NAMESPACE", "prod")];
        assert_eq!(names(&pod), ["web", "web.prod", short]);
        let podman = [("K8S_POD_NAME", "web"), ("K8S_POD_NAMESPACE", "web")];
        assert_eq!(names(&podman), ["web", short]);
        assert_eq!(names(&[("K8S_POD_NAME", "_x")]), [short]);
    }
}
