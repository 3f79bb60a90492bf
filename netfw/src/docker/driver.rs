//! Networks, and containers that join them.
//!
//! For a container that starts dockerd asks `CreateEndpoint`, `Join`, and `ProgramExternalConnectivity` of the
//! network by which it reaches the world; then it makes the namespace and takes the interface. For one that
//! ends, `RevokeExternalConnectivity`, `Leave`, `DeleteEndpoint`. Where it was killed between, some of these
//! come alone, or not at all.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::PoisonError,
    time::{Duration, Instant},
};

use axum::{
    body::Bytes,
    extract::{ConnectInfo, State},
    response::Response,
};
use ipnet::IpNet;

use super::{
    Answer, Asked, Caller, Driver, DriverError, answer, done,
    ipam::SPACE,
    message::{
        Added, Capabilities, CreateEndpoint, CreateNetwork, CreatedEndpoint, EndpointId,
        ExternalConnectivity, InterfaceName, IpamData, Join, Joined, NetworkId,
    },
    net, option, parse, port,
};
use crate::{
    agent::{Agent, AgentError, docker::Joining, ipam::mac_for},
    api::server::{change, to_the_end},
    name::Mac,
};

/// How long an endpoint is remembered that joins nothing.
const PATIENCE: Duration = Duration::from_secs(600);

/// Endpoints that were created and have not joined, by Docker's id: moments, unless dockerd is killed.
#[derive(Default)]
pub(super) struct Pending(HashMap<String, Created>);

struct Created {
    network: String,
    ip: Option<Ipv4Addr>,
    ip6: Option<Ipv6Addr>,
    mac: Mac,
    at: Instant,
}

impl Driver {
    fn pending<T>(&self, with: impl FnOnce(&mut HashMap<String, Created>) -> T) -> T {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending
            .0
            .retain(|_, created| created.at.elapsed() < PATIENCE);
        with(&mut pending.0)
    }
}

pub(super) async fn capabilities() -> Response {
    answer(&Capabilities {
        scope: "local",
        connectivity_scope: "local",
    })
}

pub(super) async fn create_network(State(driver): Asked, body: Bytes) -> Answer {
    let asked: CreateNetwork = parse(&body)?;
    let id = asked.network.clone();
    let mut request = option::request(&id, &asked.options)?;
    for data in asked.v4.iter().chain(&asked.v6) {
        let (subnet, gateway) = pool(data)?;
        request.subnets.push(subnet);
        request.gateways.extend(gateway);
    }
    let work = async move |agent: &mut Agent| agent.create_docker_network(&id, request).await;
    to_the_end(change(driver.shared, work)).await?;
    Ok(done())
}

fn pool(data: &IpamData) -> Result<(IpNet, Option<IpAddr>), DriverError> {
    if data.address_space == SPACE && !data.aux_addresses.is_empty() {
        return Err(DriverError::Unsupported {
            what: "--aux-address",
        });
    }
    let subnet = net(&data.pool)?;
    let gateway = match data.gateway.is_empty() {
        true => None,
        false => Some(net(&data.gateway)?.addr()),
    };
    Ok((subnet.trunc(), gateway))
}

pub(super) async fn delete_network(State(driver): Asked, body: Bytes) -> Answer {
    let NetworkId { network } = parse(&body)?;
    let work = async move |agent: &mut Agent| agent.remove_docker_network(&network).await;
    to_the_end(change(driver.shared, work)).await?;
    Ok(done())
}

/// Nothing is made yet: whose container it is for is said when it joins.
pub(super) async fn create_endpoint(State(driver): Asked, body: Bytes) -> Answer {
    let asked: CreateEndpoint = parse(&body)?;
    let given = |text: &str| match text.is_empty() {
        true => Ok(None),
        false => net(text).map(|net| Some(net.addr())),
    };
    let (mut ip, mut ip6) = (None, None);
    for address in [
        given(&asked.interface.address)?,
        given(&asked.interface.address6)?,
    ] {
        match address {
            Some(IpAddr::V4(address)) => ip = Some(address),
            Some(IpAddr::V6(address)) => ip6 = Some(address),
            None => {}
        }
    }
    let first = ip.map(IpAddr::V4).or(ip6.map(IpAddr::V6));
    let first = first.ok_or(DriverError::NoAddress)?;
    let text = &asked.interface.mac_address;
    let given = match text.is_empty() {
        true => None,
        false => Some(text.parse().map_err(|_| DriverError::Address {
            text: text.clone(),
            what: " of Ethernet",
        })?),
    };
    {
        let agent = driver.shared.agent.lock().await;
        agent
            .docker_network(&asked.network)
            .map_err(AgentError::from)?;
    }
    let mac = given.unwrap_or_else(|| mac_for(first));
    let created = Created {
        network: asked.network,
        ip,
        ip6,
        mac,
        at: Instant::now(),
    };
    driver.pending(|pending| pending.insert(asked.endpoint, created));
    let added = given.is_none().then(|| mac.to_string());
    Ok(answer(&CreatedEndpoint {
        interface: Added { mac_address: added },
    }))
}

pub(super) async fn join(
    State(driver): Asked,
    ConnectInfo(caller): ConnectInfo<Caller>,
    body: Bytes,
) -> Answer {
    let asked: Join = parse(&body)?;
    let (id, sandbox) = (asked.endpoint, asked.sandbox_key.into());
    let created = driver.pending(|pending| pending.remove(&id));
    let work = async move |agent: &mut Agent| match created {
        Some(created) => {
            let joining = Joining {
                network: created.network,
                endpoint: id,
                sandbox,
                ip: created.ip,
                ip6: created.ip6,
                mac: Some(created.mac),
                dockerd: caller.pid,
            };
            agent.join(joining).await
        }
        None => agent.join_again(&id, sandbox, caller.pid).await,
    };
    let (joined, _) = to_the_end(change(driver.shared, work)).await?;
    let gateway = |six| {
        let mut all = joined.gateways.iter().filter(|ip| ip.is_ipv6() == six);
        all.next().map(IpAddr::to_string).unwrap_or_default()
    };
    Ok(answer(&Joined {
        gateway: gateway(false),
        gateway6: gateway(true),
        interface_name: InterfaceName {
            src_name: joined.interface.clone(),
            dst_prefix: "eth",
        },
        disable_gateway_service: true,
    }))
}

pub(super) async fn leave(
    State(driver): Asked,
    ConnectInfo(caller): ConnectInfo<Caller>,
    body: Bytes,
) -> Answer {
    let EndpointId { endpoint } = parse(&body)?;
    let work = async move |agent: &mut Agent| agent.leave(&endpoint, caller.pid);
    to_the_end(change(driver.shared, work)).await?;
    Ok(done())
}

/// After a restart of dockerd it comes without a `Leave`.
pub(super) async fn delete_endpoint(State(driver): Asked, body: Bytes) -> Answer {
    let EndpointId { endpoint } = parse(&body)?;
    driver.pending(|pending| pending.remove(&endpoint));
    let work = async move |agent: &mut Agent| agent.delete_docker_endpoint(&endpoint).await;
    to_the_end(change(driver.shared, work)).await?;
    Ok(done())
}

/// dockerd takes what it shows of ports from its own drivers only.
pub(super) async fn endpoint_info() -> Response {
    answer(&serde_json::json!({"Value": {}}))
}

pub(super) async fn program_external_connectivity(State(driver): Asked, body: Bytes) -> Answer {
    let asked: ExternalConnectivity = parse(&body)?;
    let specs = port::specs(&asked.options)?;
    let endpoint = asked.endpoint;
    let work = async move |agent: &mut Agent| agent.open_ports(&endpoint, &specs).await;
    to_the_end(change(driver.shared, work)).await?;
    Ok(done())
}

pub(super) async fn revoke_external_connectivity(State(driver): Asked, body: Bytes) -> Answer {
    let EndpointId { endpoint } = parse(&body)?;
    let work = async move |agent: &mut Agent| agent.close_ports(&endpoint);
    to_the_end(change(driver.shared, work)).await?;
    Ok(done())
}
