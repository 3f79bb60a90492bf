//! Whose an attachment is, where no person made it: a container runtime's, which knows it by names of its
//! own.

use std::fmt;

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
}

impl Owner {
    /// The runtime's name of the container.
    pub fn container(&self) -> &str {
        match self {
            Self::Cni { container, .. } => container,
        }
    }

    /// The runtime's name of the network.
    pub fn network(&self) -> &str {
        match self {
            Self::Cni { network, .. } => network,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cni { container, network } => {
                write!(f, "CNI network {network}, container {container}")
            }
        }
    }
}
