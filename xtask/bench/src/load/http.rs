//! HTTP: new connections per second (connect, one request, one answer, closed by the server), and
//! requests per second on connections that are kept.
//!
//! The server is nginx in the container, on a CPU of its own where there are two; the client
//! (`client`) has another. With two cores for client, server and the way between, the figure shows
//! what the way takes from both.
//!
//! The server closes first, so TIME_WAIT is kept in the container, where a newer SYN may reuse it.
//! The client goes through its addresses and ports in turn, so that no pair is used twice within a
//! round and none is searched for. Flow tables are emptied before a round: entries of closed
//! connections stay for minutes, and no table holds those of a whole run.

mod client;

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netfw_tests::{Running, wait_until};
use tempfile::TempDir;

use self::client::{BODY, Client, SOURCES, source};
use super::{Load, heading};
use crate::{
    contender::{Contender, Kind},
    cpu,
    plan::Plan,
    report::{Better, Heading},
};

pub struct Http {
    /// Requests on connections that are kept; otherwise each has its own.
    keeps: bool,
    publishes: u32,
    duration: Duration,
}

impl Http {
    pub fn connections(plan: &Plan, publishes: u32) -> Self {
        Self {
            keeps: false,
            publishes,
            duration: plan.connections,
        }
    }

    pub fn requests(plan: &Plan, publishes: u32) -> Self {
        Self {
            keeps: true,
            publishes,
            duration: plan.requests,
        }
    }
}

impl Load for Http {
    fn name(&self) -> &'static str {
        match self.keeps {
            true => "requests",
            false => "connections",
        }
    }

    fn measures(&self) -> Vec<Heading> {
        let (title, unit, axis) = match self.keeps {
            true => ("HTTP requests on 64 connections", "requests/s", None),
            false => ("New HTTP connections", "connections/s", Some("publishes")),
        };
        vec![heading(self.name(), title, unit, Better::Higher, axis)]
    }

    fn at(&self) -> Option<u64> {
        (!self.keeps).then_some(self.publishes.into())
    }

    fn suits(&self, kind: Kind) -> bool {
        kind.has_addresses()
    }

    fn lane<'a>(&self, contender: &'a Contender) -> Result<Box<dyn super::Lane + 'a>> {
        Ok(Box::new(Lane::new(contender, self)?))
    }

    fn seconds(&self) -> f64 {
        self.duration.as_secs_f64()
    }
}

struct Lane<'a> {
    // Dropped in this order: nginx before its files.
    _nginx: Running,
    _directory: TempDir,
    client: Client,
    contender: &'a Contender,
    duration: Duration,
}

impl<'a> Lane<'a> {
    fn new(contender: &'a Contender, load: &Http) -> Result<Self> {
        // The client's own address is the first.
        for n in 1..SOURCES {
            let address = format!("{}/24", source(n));
            let add = ["ip", "addr", "replace", &address, "dev", "eth0"];
            contender.lab.client.run(&add);
        }
        let SocketAddr::V4(target) = contender.tcp.published else {
            bail!("{}: the client speaks IPv4", contender.tcp.published);
        };
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        let nginx = nginx(contender, &directory)?;
        let mut client = Client::new(target, load.keeps);
        wait_until("nginx to answer", Duration::from_secs(10), || {
            let tried = contender
                .lab
                .client
                .enter(|| client.run(1, Duration::from_millis(50)));
            tried.is_ok_and(|counts| counts.done > 0)
        });
        Ok(Self {
            _nginx: nginx,
            _directory: directory,
            client,
            contender,
            duration: load.duration,
        })
    }
}

impl super::Lane for Lane<'_> {
    fn run(&mut self) -> Result<Vec<f64>> {
        /// Enough that neither client nor server ever waits for the other.
        const AT_ONCE: usize = 64;
        self.contender.forget_flows();
        let cpu = cpu::sender()?;
        let (client, duration) = (&mut self.client, self.duration);
        let (counts, took) = self.contender.lab.client.enter(|| {
            cpu::pin(cpu)?;
            let start = Instant::now();
            let counts = client.run(AT_ONCE, duration)?;
            anyhow::Ok((counts, start.elapsed()))
        })?;
        ensure!(
            counts.failed * 1000 <= counts.done,
            "{} requests failed, {} were answered",
            counts.failed,
            counts.done
        );
        Ok(vec![f64::from(counts.done) / took.as_secs_f64()])
    }
}

/// nginx in the container, with nothing to write and nothing to read.
fn nginx(contender: &Contender, directory: &TempDir) -> Result<Running> {
    let path = directory.path().display();
    let configuration = format!(
        "daemon off; user root; worker_processes 1; pid {path}/pid; error_log stderr;\n\
         events {{ worker_connections 4096; multi_accept on; }}\n\
         http {{\n\
           access_log off; keepalive_timeout 60; keepalive_requests 4294967295;\n\
           client_body_temp_path {path}; proxy_temp_path {path}; fastcgi_temp_path {path};\n\
           uwsgi_temp_path {path}; scgi_temp_path {path};\n\
           server {{ listen {} backlog=4096; return 200 \"{}\"; }}\n\
         }}\n",
        contender.tcp.served,
        BODY.escape_default()
    );
    let file = directory.path().join("nginx.conf");
    fs::write(&file, configuration).with_context(|| format!("cannot write {}", file.display()))?;
    contender.server().sysctl("core/somaxconn", "4096");
    let mut command = contender.server().command("taskset");
    command
        .args(["-c", &cpu::server()?.to_string(), "nginx", "-e", "stderr"])
        .arg("-p")
        .arg(directory.path())
        .arg("-c")
        .arg(&file);
    Ok(Running::start(command))
}
