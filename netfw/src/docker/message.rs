//! What dockerd asks and is told, as its remote API has it. What else it says is left alone; a list or a map
//! that it does not have is null.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// `null` as nothing.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Activated {
    pub implements: &'static [&'static str],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Capabilities {
    pub scope: &'static str,
    pub connectivity_scope: &'static str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CreateNetwork {
    #[serde(rename = "NetworkID")]
    pub network: String,
    /// `com.docker.network.…`; `-o` of `docker network create` in [`GENERIC`].
    #[serde(default, deserialize_with = "or_default")]
    pub options: BTreeMap<String, Value>,
    #[serde(rename = "IPv4Data", default, deserialize_with = "or_default")]
    pub v4: Vec<IpamData>,
    #[serde(rename = "IPv6Data", default, deserialize_with = "or_default")]
    pub v6: Vec<IpamData>,
}

pub(super) const GENERIC: &str = "com.docker.network.generic";
pub(super) const INTERNAL: &str = "com.docker.network.internal";
pub(super) const PORT_MAP: &str = "com.docker.network.portmap";
pub(super) const ADDRESS_TYPE: &str = "RequestAddressType";
pub(super) const GATEWAY: &str = "com.docker.network.gateway";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct IpamData {
    #[serde(default)]
    pub address_space: String,
    /// `ADDRESS/LENGTH`, as is the gateway.
    pub pool: String,
    #[serde(default)]
    pub gateway: String,
    #[serde(default, deserialize_with = "or_default")]
    pub aux_addresses: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NetworkId {
    #[serde(rename = "NetworkID")]
    pub network: String,
}

/// What of an endpoint is its only field that counts.
#[derive(Deserialize)]
pub(super) struct EndpointId {
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CreateEndpoint {
    #[serde(rename = "NetworkID")]
    pub network: String,
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
    #[serde(default, deserialize_with = "or_default")]
    pub interface: Interface,
}

/// Empty: not given.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Interface {
    /// `ADDRESS/LENGTH`, as the next.
    pub address: String,
    #[serde(rename = "AddressIPv6")]
    pub address6: String,
    pub mac_address: String,
}

/// What the driver adds to what it was asked for.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CreatedEndpoint {
    pub interface: Added,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Added {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Join {
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
    pub sandbox_key: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Joined {
    pub interface_name: InterfaceName,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    #[serde(rename = "GatewayIPv6", skip_serializing_if = "String::is_empty")]
    pub gateway6: String,
    /// No `docker_gwbridge`.
    pub disable_gateway_service: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InterfaceName {
    /// In the node.
    pub src_name: String,
    /// In the container it gets a number behind.
    pub dst_prefix: &'static str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ExternalConnectivity {
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
    #[serde(default, deserialize_with = "or_default")]
    pub options: BTreeMap<String, Value>,
}

/// moby's `types.PortBinding`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PortBinding {
    /// Of IP.
    pub proto: u8,
    pub port: u16,
    /// Empty: any.
    #[serde(rename = "HostIP", default)]
    pub host_ip: String,
    /// 0: any.
    #[serde(default)]
    pub host_port: u16,
    /// The last to choose from.
    #[serde(default)]
    pub host_port_end: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct IpamCapabilities {
    #[serde(rename = "RequiresMACAddress")]
    pub requires_mac_address: bool,
    pub requires_request_replay: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AddressSpaces {
    pub local_default_address_space: &'static str,
    pub global_default_address_space: &'static str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RequestPool {
    #[serde(default)]
    pub pool: String,
    #[serde(default)]
    pub sub_pool: String,
    #[serde(default)]
    pub v6: bool,
}

#[derive(Serialize)]
pub(super) struct RequestedPool {
    #[serde(rename = "PoolID")]
    pub id: String,
    #[serde(rename = "Pool")]
    pub pool: String,
}

#[derive(Deserialize)]
pub(super) struct ReleasePool {
    #[serde(rename = "PoolID")]
    pub pool: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Address {
    #[serde(rename = "PoolID")]
    pub pool: String,
    #[serde(default)]
    pub address: String,
    #[serde(default, deserialize_with = "or_default")]
    pub options: BTreeMap<String, Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RequestedAddress {
    pub address: String,
}
