//! The CNI plugin: netfw under the name `netfw-cni`, as container runtimes call it.
//!
//! What the Container Network Interface says (its SPEC.md 1.1.0 and CONVENTIONS.md) is here; what becomes of a
//! container is the agent's, which is asked by its API. The plugin itself keeps nothing: the agent's records
//! have the runtime's names for everything ([`Owner`](crate::owner::Owner)), so DEL and GC find it whatever
//! has happened since.
//!
//! | module | what |
//! |---|---|
//! | [`call`] | what the environment says |
//! | [`config`] | what comes on stdin |
//! | [`version`] | the versions of the specification |
//! | [`command`] | ADD, DEL, CHECK, GC, STATUS |
//! | [`check`] | a result that was given, and what has become of it |
//! | [`ipam`] | another plugin that chooses addresses |
//! | [`result`] | what goes to stdout |
//! | [`error`] | the specification's codes |

pub mod call;
pub mod check;
pub mod command;
pub mod config;
pub mod error;
pub mod ipam;
pub mod result;
pub mod version;

use std::{
    ffi::OsStr,
    io::{Read as _, Write as _},
    path::Path,
    process::ExitCode,
};

use serde_json::{Value, json};

use self::{
    call::{Call, Command},
    config::Config,
    error::CniError,
    version::Version,
};

/// The name by which netfw is the plugin: `type` in a network configuration.
pub const NAME: &str = "netfw-cni";

/// Longest configuration, in bytes.
const LIMIT: u64 = 1 << 20;

/// Has a runtime called netfw, rather than a person?
pub fn is_called(program: Option<&OsStr>) -> bool {
    let name = program.map(Path::new).and_then(Path::file_name);
    name == Some(OsStr::new(NAME))
}

/// Carries out what the environment and stdin say; a result or an error goes to stdout.
pub fn main() -> ExitCode {
    let mut version = Version::LATEST;
    let done = run(
        |key| std::env::var(key).ok(),
        || {
            let mut text = Vec::new();
            let read = std::io::stdin()
                .lock()
                .take(LIMIT + 1)
                .read_to_end(&mut text);
            read.map(|_| text)
        },
        &mut version,
    );
    let (text, status) = match done {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (value, ExitCode::SUCCESS),
        Err(error) => (error.to_json(version), ExitCode::FAILURE),
    };
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => status,
        // Whoever asked is gone.
        Err(_) => ExitCode::FAILURE,
    }
}

/// The version in which to answer becomes `version`.
fn run(
    variable: impl Fn(&str) -> Option<String>,
    stdin: impl FnOnce() -> std::io::Result<Vec<u8>>,
    version: &mut Version,
) -> Result<Option<Value>, CniError> {
    let command = Command::of(&variable)?;
    let text = stdin().map_err(|source| CniError::io("the network configuration", &source))?;
    if text.len() as u64 > LIMIT {
        return Err(CniError::decode(format!("it has more than {LIMIT} bytes")));
    }
    if command == Command::Version {
        return versions(&text).map(Some);
    }
    let config = config::object(&text)?;
    *version = Version::of(config::version(&config)?, command)?;
    let call = Call::of(command, &variable)?;
    let config = Config::of(config, command)?;
    crate::block_on(command::run(&call, &config, *version, &text))
}

/// What VERSION answers, in whichever version it is asked.
fn versions(text: &[u8]) -> Result<Value, CniError> {
    let asked = match text.iter().all(u8::is_ascii_whitespace) {
        true => None,
        false => config::object(text)?.remove("cniVersion"),
    };
    let asked = asked.unwrap_or_else(|| Version::LATEST.name().into());
    let known: Vec<&str> = Version::ALL.iter().map(|version| version.name()).collect();
    Ok(json!({ "cniVersion": asked, "supportedVersions": known }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(
        environment: &[(&str, &str)],
        stdin: &str,
    ) -> (Version, Result<Option<Value>, CniError>) {
        let mut version = Version::LATEST;
        let variable = |key: &str| {
            let mut all = environment.iter();
            all.find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned())
        };
        let done = run(variable, || Ok(stdin.as_bytes().to_vec()), &mut version);
        (version, done)
    }

    #[track_caller]
    fn code(environment: &[(&str, &str)], stdin: &str) -> (u32, String) {
        let (version, done) = ask(environment, stdin);
        let error = done.unwrap_err().to_json(version);
        assert!(
            error["cniVersion"].is_string() && error["msg"].is_string(),
            "{error}"
        );
        let code = error["code"].as_u64().unwrap();
        (code.try_into().unwrap(), error.to_string())
    }

    #[test]
    fn it_goes_by_the_name_it_is_called_by() {
        for (program, is) in [
            ("netfw-cni", true),
            ("/opt/cni/bin/netfw-cni", true),
            ("netfw", false),
            ("/usr/bin/netfw", false),
            ("netfw-cni/netfw", false),
        ] {
            assert_eq!(is_called(Some(OsStr::new(program))), is, "{program}");
        }
        assert!(!is_called(None));
    }

    #[test]
    fn version_tells_what_is_supported() {
        let supported = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        for (stdin, version) in [
            (r#"{"cniVersion": "0.4.0"}"#, "0.4.0"),
            (r#"{"cniVersion": "9.9.9"}"#, "9.9.9"),
            ("{}", "1.1.0"),
            ("", "1.1.0"),
        ] {
            let (_, said) = ask(&[("CNI_COMMAND", "VERSION")], stdin);
            let expected = json!({"cniVersion": version, "supportedVersions": supported});
            assert_eq!(said.unwrap(), Some(expected), "{stdin}");
        }
        assert_eq!(code(&[("CNI_COMMAND", "VERSION")], "{").0, 6);
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/proc/self/no-namespace"),
        ("CNI_IFNAME", "eth0"),
    ];

    #[test]
    fn what_is_missing_in_the_environment_is_named() {
        let config = r#"{"cniVersion": "1.1.0", "name": "app", "type": "netfw-cni"}"#;
        assert_eq!(code(&[], config).0, 4);
        assert_eq!(code(&[("CNI_COMMAND", "add")], config).0, 4);
        for command in ["ADD", "CHECK"] {
            for missing in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
                let mut environment = ADD.to_vec();
                environment[0].1 = command;
                environment.retain(|(key, _)| *key != missing);
                let (code, said) = code(&environment, config);
                assert_eq!(code, 4, "{said}");
                assert!(said.contains(missing), "{said}");
            }
        }
        let (number, said) = code(&[("CNI_COMMAND", "DEL")], config);
        assert_eq!(number, 4, "{said}");
        assert!(
            said.contains("CNI_CONTAINERID") && said.contains("CNI_IFNAME"),
            "{said}"
        );
        assert!(!said.contains("CNI_NETNS"), "{said}");
        for (key, wrong) in [
            ("CNI_CONTAINERID", "../x"),
            ("CNI_CONTAINERID", "-x"),
            ("CNI_IFNAME", "sixteen-letters-"),
            ("CNI_IFNAME", "a/b"),
            ("CNI_NETNS", "/dev/null"),
            ("CNI_NETNS", "/nowhere"),
            ("CNI_ARGS", "WHATEVER"),
            ("CNI_ARGS", "WHATEVER=1"),
            ("CNI_ARGS", "IP=x"),
        ] {
            let mut environment = ADD.to_vec();
            environment.retain(|(k, _)| *k != key);
            environment.push((key, wrong));
            let (code, said) = code(&environment, config);
            assert_eq!(code, 4, "{key}={wrong}: {said}");
            assert!(said.contains(key), "{key}={wrong}: {said}");
        }
    }

    #[test]
    fn wrong_configurations_have_the_specification_s_codes() {
        for (config, expected, word) in [
            ("", 6, ""),
            ("nonsense", 6, ""),
            ("[]", 6, ""),
            (r#"{"cniVersion": 1}"#, 6, "cniVersion"),
            (r#"{"name": "app"}"#, 1, "0.1.0"),
            (r#"{"cniVersion": "0.2.0", "name": "app"}"#, 1, "0.2.0"),
            (r#"{"cniVersion": "2.0.0", "name": "app"}"#, 1, "2.0.0"),
            (r#"{"cniVersion": "1.1.0"}"#, 7, "name"),
            (r#"{"cniVersion": "1.1.0", "name": "-a"}"#, 7, "-a"),
            (
                r#"{"cniVersion": "1.1.0", "name": "a", "subnets": ["10.0.0.0"]}"#,
                7,
                "10.0.0.0",
            ),
            (
                r#"{"cniVersion": "1.1.0", "name": "a", "subnet": "10.0.0.0/8"}"#,
                2,
                "10.0.0.0/8",
            ),
            (
                r#"{"cniVersion": "1.1.0", "name": "a", "runtimeConfig": {"bandwidth": {"ingressRate": 1}}}"#,
                2,
                "ingressRate",
            ),
            (
                r#"{"cniVersion": "1.1.0", "name": "a", "runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 80}]}}"#,
                7,
                "hostPort",
            ),
            (
                r#"{"cniVersion": "1.1.0", "name": "a", "runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 80, "protocol": "dccp"}]}}"#,
                7,
                "dccp",
            ),
            (
                r#"{"cniVersion": "1.1.0", "name": "a", "runtimeConfig": {"mac": "x"}}"#,
                7,
                "mac",
            ),
            (
                r#"{"cniVersion": "1.1.0", "name": "a", "prevResult": {}}"#,
                7,
                "prevResult",
            ),
            (
                r#"{"cniVersion": "1.1.0", "name": "a", "ipam": {"type": "../x"}}"#,
                7,
                "../x",
            ),
            (
                r#"{"cniVersion": "1.1.0", "name": "a", "ipam": {"type": "x"}}"#,
                4,
                "CNI_PATH",
            ),
        ] {
            // Of some namespace, that is not the caller's: it is not looked at before.
            let (code, said) = code(&ADD, config);
            assert_eq!(code, expected, "{config}: {said}");
            assert!(said.contains(word), "{config}: {said}");
        }
    }

    #[test]
    fn commands_that_a_version_has_not_are_refused_in_it() {
        for (command, version, has) in [
            ("CHECK", "0.3.1", false),
            ("CHECK", "0.4.0", true),
            ("GC", "1.0.0", false),
            ("STATUS", "1.0.0", false),
        ] {
            let mut environment = ADD.to_vec();
            environment[0].1 = command;
            let config = format!(r#"{{"cniVersion": "{version}", "name": "a"}}"#);
            let (code, said) = code(&environment, &config);
            assert_eq!(code == 1, !has, "{command} {version}: {said}");
            assert_eq!(
                ask(&environment, &config).0.name(),
                match has {
                    true => version,
                    false => "1.1.0",
                }
            );
        }
    }

    #[test]
    fn gc_wants_to_be_told_what_is_valid() {
        let config = r#"{"cniVersion": "1.1.0", "name": "a"}"#;
        let (code, said) = code(&[("CNI_COMMAND", "GC")], config);
        assert_eq!(code, 7, "{said}");
        assert!(said.contains("cni.dev/valid-attachments"), "{said}");
    }
}
