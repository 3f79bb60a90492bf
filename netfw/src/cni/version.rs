//! The versions of the specification that are spoken.

use super::{call::Command, error::CniError};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub const ALL: [Self; 5] = [
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];
    pub const LATEST: Self = Self::V1_1_0;

    pub const fn name(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// That of a configuration, if `command` is of it.
    pub fn of(name: &str, command: Command) -> Result<Self, CniError> {
        let mut all = Self::ALL.into_iter();
        let version = all.find(|version| version.name() == name);
        let version = version.ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            CniError::incompatible(format!(
                "the configuration's version is {name}; the plugin speaks {known}"
            ))
        })?;
        let since = match command {
            Command::Check => Self::V0_4_0,
            Command::Gc | Command::Status => Self::V1_1_0,
            Command::Add | Command::Del | Command::Version => Self::V0_3_0,
        };
        if version < since {
            let (command, since) = (command.name(), since.name());
            return Err(CniError::incompatible(format!(
                "{command} is of version {since}, and the configuration's is {name}"
            )));
        }
        Ok(version)
    }
}
