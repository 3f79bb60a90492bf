//! The rules of a network: who gets out of it and in, and how.

use netfw_common::record::network_flag;
use serde::{Deserialize, Serialize};

/// How masquerade maps an internal address and port (RFC 4787 4.1).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Nat {
    /// Only who was sent to may answer; a port may serve several destinations at once.
    #[default]
    PortRestricted,
    /// One external port for all destinations.
    EndpointIndependent,
}

/// Who may send to an endpoint-independent mapping (RFC 4787 5).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// Everybody.
    EndpointIndependent,
    /// Whoever was sent to, from any port.
    AddressDependent,
    /// Whoever was sent to, from the port that was sent to.
    #[default]
    AddressAndPortDependent,
}

impl Nat {
    pub const fn name(self) -> &'static str {
        match self {
            Self::PortRestricted => "port-restricted",
            Self::EndpointIndependent => "endpoint-independent",
        }
    }
}

impl Filter {
    pub const fn name(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// No way out or in.
    pub internal: bool,
    /// Own addresses may be reached from outside, published or not.
    pub routed: bool,
    /// Packets to the world get the node's address as source.
    pub masquerade: bool,
    pub nat: Nat,
    pub filter: Filter,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            internal: false,
            routed: false,
            masquerade: true,
            nat: Nat::default(),
            filter: Filter::default(),
        }
    }
}

impl Rules {
    /// As the programs know them: bits of [`network_flag`].
    pub fn flags(&self) -> u32 {
        let nat = match (self.nat, self.filter) {
            (Nat::PortRestricted, _) => 0,
            (Nat::EndpointIndependent, filter) => {
                network_flag::ENDPOINT_INDEPENDENT
                    | match filter {
                        Filter::EndpointIndependent => network_flag::FILTER_NONE,
                        Filter::AddressDependent => network_flag::FILTER_ADDRESS,
                        Filter::AddressAndPortDependent => 0,
                    }
            }
        };
        let bit = |is: bool, flag| if is { flag } else { 0 };
        nat | bit(self.internal, network_flag::INTERNAL)
            | bit(self.routed, network_flag::ROUTED)
            | bit(self.masquerade && !self.routed, network_flag::MASQUERADE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_one_everywhere() {
        use clap::ValueEnum;
        for nat in Nat::value_variants() {
            let word = nat.to_possible_value().unwrap();
            assert_eq!(word.get_name(), nat.name());
            assert_eq!(serde_json::to_value(nat).unwrap(), nat.name());
        }
        for filter in Filter::value_variants() {
            let word = filter.to_possible_value().unwrap();
            assert_eq!(word.get_name(), filter.name());
            assert_eq!(serde_json::to_value(filter).unwrap(), filter.name());
        }
    }

    #[test]
    fn flags() {
        assert_eq!(Rules::default().flags(), network_flag::MASQUERADE);
        let filtered = Rules {
            filter: Filter::EndpointIndependent,
            ..Default::default()
        };
        assert_eq!(
            filtered.flags(),
            network_flag::MASQUERADE,
            "a filter is one of endpoint-independent mappings"
        );
        let all = Rules {
            internal: true,
            routed: true,
            masquerade: false,
            nat: Nat::EndpointIndependent,
            filter: Filter::AddressDependent,
        };
        assert_eq!(
            all.flags(),
            network_flag::INTERNAL
                | network_flag::ROUTED
                | network_flag::ENDPOINT_INDEPENDENT
                | network_flag::FILTER_ADDRESS
        );
    }
}
