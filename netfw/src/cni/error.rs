//! Errors as runtimes read them: the specification's codes, and ours from 100 on.

use serde_json::{Value, json};

use super::version::Version;
use crate::api::{client::ClientError, types::FailureKind};

const INCOMPATIBLE: u32 = 1;
const UNSUPPORTED: u32 = 2;
const UNKNOWN_CONTAINER: u32 = 3;
const ENVIRONMENT: u32 = 4;
const IO: u32 = 5;
const DECODE: u32 = 6;
const CONFIG: u32 = 7;
const AGAIN: u32 = 11;
/// No ADD can be carried out, and containers that there are do without something.
const LIMITED: u32 = 51;
/// A name, an address, a port or an interface is taken.
const CONFLICT: u32 = 100;
/// The node refused, or netfw has a fault.
const INTERNAL: u32 = 101;
/// CHECK: something is not as ADD made it.
const DRIFT: u32 = 102;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{msg}: {details}")]
pub struct CniError {
    code: u32,
    msg: String,
    details: String,
}

impl CniError {
    pub fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: details.into(),
        }
    }

    pub fn incompatible(details: impl Into<String>) -> Self {
        Self::new(INCOMPATIBLE, "incompatible CNI version", details)
    }

    pub fn unsupported(key: &str, value: &Value, why: &str) -> Self {
        let msg = format!("unsupported field {key:?} with the value {value}");
        Self::new(UNSUPPORTED, msg, why)
    }

    pub fn unknown_container(details: impl Into<String>) -> Self {
        Self::new(UNKNOWN_CONTAINER, "no such attachment", details)
    }

    /// `names` are those of the variables.
    pub fn environment(names: &[&str], details: impl Into<String>) -> Self {
        let msg = format!("missing or wrong in the environment: {}", names.join(", "));
        Self::new(ENVIRONMENT, msg, details)
    }

    pub fn io(what: &str, source: &std::io::Error) -> Self {
        Self::new(IO, format!("{what} cannot be read"), source.to_string())
    }

    pub fn decode(details: impl Into<String>) -> Self {
        Self::new(DECODE, "the network configuration cannot be read", details)
    }

    pub fn config(details: impl Into<String>) -> Self {
        Self::new(CONFIG, "the network configuration is wrong", details)
    }

    pub fn drift(faults: &[String]) -> Self {
        let msg = "the attachment is not as it was made";
        Self::new(DRIFT, msg, faults.join("; "))
    }

    /// The kernel refused a look.
    pub fn internal(error: &dyn std::error::Error) -> Self {
        Self::new(INTERNAL, "netfw failed", crate::chain(error))
    }

    pub fn failed(faults: &[String]) -> Self {
        Self::new(INTERNAL, "not all could be removed", faults.join("; "))
    }

    /// The agent is silent.
    pub fn again(details: impl Into<String>) -> Self {
        Self::new(AGAIN, "netfw's agent does not answer", details)
    }

    /// The same, where it was asked for by STATUS: packets go on, names are not served.
    pub fn as_status(self) -> Self {
        match self.code {
            AGAIN => Self {
                code: LIMITED,
                ..self
            },
            _ => self,
        }
    }

    pub fn to_json(&self, version: Version) -> Value {
        json!({
            "cniVersion": version.name(),
            "code": self.code,
            "msg": self.msg,
            "details": self.details,
        })
    }
}

impl From<ClientError> for CniError {
    fn from(error: ClientError) -> Self {
        let (code, msg) = match &error {
            ClientError::Refused { kind, .. } => match kind {
                FailureKind::Invalid | FailureKind::NotFound => {
                    (CONFIG, "the network configuration cannot be had")
                }
                FailureKind::Conflict => (CONFLICT, "something is in the way"),
                FailureKind::Internal => (INTERNAL, "netfw's agent failed"),
            },
            ClientError::Permission { .. } => (IO, "netfw's agent cannot be asked"),
            ClientError::Answer { .. } => (DECODE, "netfw's agent is not understood"),
            _ => return Self::again(crate::chain(&error)),
        };
        Self::new(code, msg, crate::chain(&error))
    }
}
