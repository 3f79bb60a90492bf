//! Subnets and addresses, for networks whose IPAM driver is netfw.
//!
//! What networks and containers have is known from the wanted state. What was promised to dockerd, which has
//! not made anything of it yet, is remembered for a while; a start of the agent forgets it.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use axum::{body::Bytes, extract::State, response::Response};
use ipnet::IpNet;
use serde_json::Value;

use super::{
    Answer, Asked, DriverError, answer, done,
    message::{
        ADDRESS_TYPE, Address, AddressSpaces, GATEWAY, IpamCapabilities, ReleasePool, RequestPool,
        RequestedAddress, RequestedPool,
    },
    net, parse,
};
use crate::{
    agent::{Agent, AgentError, ipam::Pool},
    api::server::{change, to_the_end},
};

pub(super) const SPACE: &str = "netfw";

/// How long dockerd has to make something of what it was promised.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Ipam(HashMap<IpNet, Promised>);

struct Promised {
    at: Instant,
    gateway: Option<IpAddr>,
    addresses: HashMap<IpAddr, Instant>,
    /// The one given last: an address rests before it is given again.
    last: Option<IpAddr>,
}

impl Ipam {
    /// What was promised of the subnet, and still stands.
    fn of(&mut self, subnet: IpNet) -> &mut Promised {
        let promised = self.0.entry(subnet).or_insert(Promised {
            at: Instant::now(),
            gateway: None,
            addresses: HashMap::new(),
            last: None,
        });
        promised.addresses.retain(|_, at| at.elapsed() < PATIENCE);
        promised
    }

    /// Subnets of which dockerd is about to make networks.
    fn subnets(&self) -> impl Iterator<Item = IpNet> {
        let fresh = self.0.iter().filter(|(_, p)| p.at.elapsed() < PATIENCE);
        fresh.map(|(subnet, _)| *subnet)
    }
}

pub(super) async fn capabilities() -> Response {
    answer(&IpamCapabilities {
        requires_mac_address: false,
        requires_request_replay: false,
    })
}

pub(super) async fn address_spaces() -> Response {
    answer(&AddressSpaces {
        local_default_address_space: SPACE,
        global_default_address_space: SPACE,
    })
}

pub(super) async fn request_pool(State(driver): Asked, body: Bytes) -> Answer {
    let asked: RequestPool = parse(&body)?;
    if !asked.sub_pool.is_empty() {
        return Err(DriverError::Unsupported { what: "--ip-range" });
    }
    let mut ipam = driver.ipam.lock().await;
    let subnet = match asked.pool.is_empty() {
        false => parse_subnet(&asked.pool)?,
        true => {
            let mut agent = driver.shared.agent.lock().await;
            agent.choose_subnet(asked.v6, ipam.subnets()).await?
        }
    };
    // Whether it can be had is for the network to say.
    ipam.of(subnet).at = Instant::now();
    Ok(answer(&RequestedPool {
        id: subnet.to_string(),
        pool: subnet.to_string(),
    }))
}

pub(super) async fn release_pool(State(driver): Asked, body: Bytes) -> Answer {
    let ReleasePool { pool } = parse(&body)?;
    driver.ipam.lock().await.0.remove(&parse_subnet(&pool)?);
    Ok(done())
}

pub(super) async fn request_address(State(driver): Asked, body: Bytes) -> Answer {
    let asked: Address = parse(&body)?;
    let subnet = parse_subnet(&asked.pool)?;
    let wanted = match asked.address.as_str() {
        "" => None,
        text => Some(parse_address(text)?),
    };
    let is_gateway = asked.options.get(ADDRESS_TYPE).and_then(Value::as_str) == Some(GATEWAY);
    let mut ipam = driver.ipam.lock().await;
    let work = async move |agent: &mut Agent| {
        // dockerd gives away again what it had given to a container that ended while it was away.
        agent.forget_lost_sandboxes().await?;
        Ok(agent.given_of(&subnet))
    };
    let ((mut taken, gateway), _) = to_the_end(change(driver.shared, work)).await?;
    let promised = ipam.of(subnet);
    taken.extend(promised.addresses.keys());
    let taken: BTreeSet<IpAddr> = taken.into_iter().collect();
    let refused = |error| DriverError::from(AgentError::Address(error));
    let address = if is_gateway {
        let pool = Pool::new(subnet, wanted).map_err(refused)?;
        promised.gateway = Some(pool.gateway);
        pool.gateway
    } else {
        let pool = Pool::new(subnet, gateway.or(promised.gateway)).map_err(refused)?;
        let address = match wanted {
            Some(address) => {
                pool.check(address, &taken).map_err(refused)?;
                address
            }
            None => {
                let last = promised.last.unwrap_or(pool.last);
                let next = Pool { last, ..pool }.next(&taken).map_err(refused)?;
                promised.last = Some(next);
                next
            }
        };
        promised.addresses.insert(address, Instant::now());
        address
    };
    Ok(answer(&RequestedAddress {
        address: format!("{address}/{}", subnet.prefix_len()),
    }))
}

pub(super) async fn release_address(State(driver): Asked, body: Bytes) -> Answer {
    let asked: Address = parse(&body)?;
    let subnet = parse_subnet(&asked.pool)?;
    let address = parse_address(&asked.address)?;
    if let Some(promised) = driver.ipam.lock().await.0.get_mut(&subnet) {
        promised.addresses.remove(&address);
    }
    Ok(done())
}

fn parse_subnet(text: &str) -> Result<IpNet, DriverError> {
    Ok(net(text)?.trunc())
}

fn parse_address(text: &str) -> Result<IpAddr, DriverError> {
    text.parse().map_err(|_| DriverError::Address {
        text: text.into(),
        what: "",
    })
}
