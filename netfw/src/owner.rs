//! Whose an attachment is, where no person made it: a container runtime's, which knows it by names of its
//! own.

use std::{fmt, mem::discriminant};

use serde::{Deserialize, Serialize};

/// By what its runtime knows an attachment; together with the interface's name it is one's alone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// Made by the CNI plugin.
    Cni {
        /// `CNI_CONTAINERID`.
        container: String,
        /// `name` of the network configuration.
        network: String,
    },
    /// Made by Docker's remote driver.
    Docker {
        /// What Docker calls the container's sandbox: the name of its namespace's file.
        container: String,
        /// The network's id.
        network: String,
        /// The endpoint's id.
        endpoint: String,
    },
}

impl Owner {
    /// The runtime's name of the container.
    pub fn container(&self) -> &str {
        match self {
            Self::Cni { container, .. } | Self::Docker { container, .. } => container,
        }
    }

    /// The runtime's name of the network.
    pub fn network(&self) -> &str {
        match self {
            Self::Cni { network, .. } | Self::Docker { network, .. } => network,
        }
    }

    /// Is it of the same runtime's same container?
    pub fn is_same_container(&self, other: &Self) -> bool {
        discriminant(self) == discriminant(other) && self.container() == other.container()
    }

    /// Does the runtime bind the host port of a publish itself?
    pub fn binds_ports(&self) -> bool {
        matches!(self, Self::Cni { .. })
    }

    /// Does the runtime take the container's end of a veth pair out of the node, into a namespace that it makes
    /// later, and configure it there?
    pub fn configures(&self) -> bool {
        matches!(self, Self::Docker { .. })
    }
}

/// An id as Docker shows it.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cni { container, network } => {
                write!(f, "CNI network {network}, container {container}")
            }
            Self::Docker {
                container, network, ..
            } => {
                write!(f, "Docker network {}, sandbox {container}", short(network))
            }
        }
    }
}
