//! Tells who started the agent how it is getting on: sd_notify(3), for units with `Type=notify`, and
//! sd_watchdog_enabled(3), for those with `WatchdogSec=`.
//!
//! The socket is connected before the agent enters the node's namespace: one whose address is
//! abstract belongs to a network namespace.
//!
//! An agent that cannot be had is as good as dead, so it is had first, each time that it is said to live:
//! the watchdog ends one that waits for itself for ever. It wants to hear within `WATCHDOG_USEC` and is told
//! at half of that, so whatever takes the agent for less than the other half is no reason.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{Interval, MissedTickBehavior, interval},
};

/// Nobody to tell, as a rule.
#[derive(Default)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
    /// How often it is told that the agent lives, if it wants to know.
    beat: Option<Duration>,
}

/// When it is to be told that the agent lives.
pub struct Beats(Option<Interval>);

impl Beats {
    /// Waits for the next; for ever, where nobody wants to know. Nothing is lost if it is dropped meanwhile.
    pub async fn next(&mut self) {
        match &mut self.0 {
            Some(interval) => {
                interval.tick().await;
            }
            None => std::future::pending().await,
        }
    }
}

impl ServiceManager {
    /// To whom `NOTIFY_SOCKET` says, if it is set, as often as `WATCHDOG_USEC` says.
    pub fn from_environment() -> Self {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
            return Self::default();
        };
        match connect(&address) {
            Ok(socket) => Self {
                socket: Some(socket),
                beat: beat(|name| std::env::var_os(name), std::process::id()),
            },
            Err(error) => {
                tracing::warn!(address = %address.display(), %error, "NOTIFY_SOCKET cannot be reached");
                Self::default()
            }
        }
    }

    /// To be called within the runtime. The first beat is due at once.
    pub fn beats(&self) -> Beats {
        Beats(self.beat.map(|period| {
            let mut interval = interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        }))
    }

    /// `READY=1`, `STOPPING=1`. Who does not listen misses it.
    pub fn tell(&self, state: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(state.as_bytes())
        {
            tracing::debug!(%error, "{state} was not told");
        }
    }

    /// As [`tell`](Self::tell), with a `sentence` on what the agent does, once it can be had.
    pub async fn tell_of<A>(
        &self,
        state: &str,
        agent: &Mutex<A>,
        sentence: impl FnOnce(&A) -> String,
    ) {
        if self.socket.is_some() {
            let status = sentence(&*agent.lock().await);
            self.tell(&format!("{state}\nSTATUS={status}"));
        }
    }
}

/// Half of what the watchdog of process `own` waits for, if it has one.
fn beat(variable: impl Fn(&str) -> Option<OsString>, own: u32) -> Option<Duration> {
    let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
    let limit = number("WATCHDOG_USEC").filter(|limit| *limit > 0)?;
    // Inherited, it may be meant for a parent.
    if variable("WATCHDOG_PID").is_some() && number("WATCHDOG_PID") != Some(own.into()) {
        return None;
    }
    Some(Duration::from_micros((limit / 2).max(1)))
}

/// An absolute path, or an abstract address behind `@`.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match address.as_bytes() {
        [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        _ => socket.connect(address)?,
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_abstract_addresses_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("netfw-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        for (listener, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into()),
            (
                UnixDatagram::bind_addr(&abstract_address).unwrap(),
                format!("@{name}").into(),
            ),
        ] {
            let address: OsString = address;
            told_at(&address).tell("READY=1");
            let mut buffer = [0; 64];
            let length = listener.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
        assert!(connect(OsStr::new("/no/such/socket")).is_err());
        ServiceManager::default().tell("READY=1");
    }

    fn told_at(address: &OsStr) -> ServiceManager {
        ServiceManager {
            socket: Some(connect(address).unwrap()),
            beat: None,
        }
    }

    #[test]
    fn a_watchdog_is_told_twice_as_often_as_it_looks() {
        let of = |limit: Option<&'static str>, pid: Option<&'static str>| {
            let variable = move |name: &str| match name {
                "WATCHDOG_USEC" => limit.map(OsString::from),
                _ => pid.map(OsString::from),
            };
            beat(variable, 7)
        };
        let minute = Some(Duration::from_secs(60));
        assert_eq!(of(Some("120000000"), None), minute);
        assert_eq!(of(Some("120000000"), Some("7")), minute);
        assert_eq!(of(Some("1"), None), Some(Duration::from_micros(1)));
        for (limit, pid) in [
            (None, None),
            (None, Some("7")),
            (Some("0"), None),
            (Some("soon"), None),
            (Some("-1"), None),
            (Some("120000000"), Some("8")),
            (Some("120000000"), Some("")),
        ] {
            assert_eq!(of(limit, pid), None, "{limit:?} {pid:?}");
        }
    }

    #[tokio::test]
    async fn an_agent_that_cannot_be_had_is_not_said_to_live() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let told = || {
            let mut buffer = [0; 64];
            let length = listener.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        let manager = told_at(path.as_os_str());
        let agent = Mutex::new(3);
        let tell = || manager.tell_of("WATCHDOG=1", &agent, |n| format!("{n} endpoints"));
        let held = agent.lock().await;
        let deadlocked = tokio::time::timeout(Duration::from_millis(50), tell());
        assert!(deadlocked.await.is_err());
        assert_eq!(told(), None);
        drop(held);
        tell().await;
        assert_eq!(told().as_deref(), Some("WATCHDOG=1\nSTATUS=3 endpoints"));
    }

    #[tokio::test]
    async fn beats_come_at_once_and_then_at_intervals_or_never() {
        let with = |beat| {
            let manager = ServiceManager { beat, socket: None };
            manager.beats()
        };
        let pause = Duration::from_millis(20);
        let started = tokio::time::Instant::now();
        let mut beats = with(Some(pause));
        for n in 0..3 {
            beats.next().await;
            assert!(started.elapsed() >= pause * n);
        }
        let mut none = with(None);
        assert!(tokio::time::timeout(pause, none.next()).await.is_err());
    }
}
