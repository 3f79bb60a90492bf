//! The client of the API: one connection a request, over the agent's unix socket.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};

use super::owned::{
    AttachRequest, Attached, Checked, CollectRequest, Collected, Detached, Owned, Version,
};
use super::types::{
    Applied, ApplyRequest, ConnectRequest, Endpoint, EndpointRequest, Failure, FailureKind, Fault,
    Flow, Flushed, Network, NetworkDetails, NetworkRequest, PublishRequest, Stats, Status,
    UnpublishRequest,
};
use super::watch::Line;
use crate::{
    agent::{paths::Paths, saved::Saved},
    filter::FlowFilter,
    name::Name,
    publish::Spec,
};

/// Longest answer: a million flows take about 300 MB.
const LIMIT: usize = 1 << 30;

/// An agent that is starting gets this long; the kernel's verifier takes most of it, a second where
/// nothing else runs.
const STARTING: Duration = Duration::from_secs(10);
/// And a process that may be about to become one, this long.
const BEFORE: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(10);
/// An answer that takes so long is told of.
const TELL: Duration = Duration::from_secs(2);
/// An agent that has not hung answers within this where it need not wait for itself.
const GLANCE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no agent is running for instance \"{instance}\": start it with `netfw agent{}`",
        crate::agent::run::instance_option(instance)
    )]
    NotRunning { instance: Name },
    #[error(
        "the agent for instance \"{instance}\" runs, but does not listen (yet): it is starting or ending; its log says more"
    )]
    Starting { instance: Name },
    #[error("{socket} may be opened by root only: run the command as root, or with sudo")]
    Permission { socket: PathBuf },
    #[error("the agent cannot be reached on {socket}: {source}")]
    Connect { socket: PathBuf, source: io::Error },
    #[error(
        "the agent on {socket} did not answer: {source}; where something was to be changed, look whether it was"
    )]
    Http {
        socket: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "the agent ({}) has not answered for {} s: {}",
        process(*pid),
        patience.as_secs(),
        remedy(*pid)
    )]
    Silent {
        pid: Option<i32>,
        patience: Duration,
    },
    #[error(
        "the agent has ended, and with it what it tells; `netfw{} status` waits for another one",
        crate::agent::run::instance_option(instance)
    )]
    Ended { instance: Name },
    #[error("the agent's answer cannot be read ({source}): is it another version of netfw?")]
    Answer { source: serde_json::Error },
    /// The agent refused; its own words.
    #[error("{error}")]
    Refused {
        error: String,
        kind: FailureKind,
        /// Of a document.
        faults: Vec<Fault>,
    },
}

#[derive(Clone, Debug)]
pub struct Client {
    paths: Paths,
    socket: PathBuf,
    /// How long an answer may be in coming. None: for ever, as some requests are a lot of work.
    patience: Option<Duration>,
    /// Say on stderr that an answer is long in coming.
    tells: bool,
}

type Result<T> = std::result::Result<T, ClientError>;

impl Client {
    pub fn new(instance: &Name) -> Self {
        let paths = Paths::of(instance);
        Self {
            socket: paths.socket(),
            paths,
            patience: None,
            tells: false,
        }
    }

    /// Says on stderr, once a request, that it waits.
    pub fn telling(self) -> Self {
        Self {
            tells: true,
            ..self
        }
    }

    /// Gives up ([`ClientError::Silent`]) on an agent that takes a request and does not begin to answer for so
    /// long.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self {
            patience: Some(patience),
            ..self
        }
    }

    pub async fn status(&self) -> Result<Status> {
        self.get("/v1/status").await
    }

    pub async fn stats(&self) -> Result<Stats> {
        self.get("/v1/stats").await
    }

    /// What `monitor` or `trace` is told, under a path with its query.
    pub async fn watch(&self, path: &str) -> Result<Lines> {
        let (response, connection) = self.ask(Method::GET, path, NOTHING).await?;
        if !response.status().is_success() {
            return Err(self.refusal(path, response).await);
        }
        Ok(Lines {
            body: response.into_body(),
            begun: Vec::new(),
            instance: self.paths.instance.clone(),
            _connection: AbortOnDrop(connection),
        })
    }

    pub async fn store(&self) -> Result<Saved> {
        self.get("/v1/store").await
    }

    pub async fn apply(&self, request: &ApplyRequest) -> Result<Applied> {
        self.send(Method::POST, "/v1/apply", Some(request)).await
    }

    pub async fn networks(&self) -> Result<Vec<Network>> {
        self.get("/v1/networks").await
    }

    pub async fn network(&self, name: &Name) -> Result<NetworkDetails> {
        self.get(&format!("/v1/networks/{name}")).await
    }

    pub async fn create_network(&self, request: &NetworkRequest) -> Result<NetworkDetails> {
        self.send(Method::POST, "/v1/networks", Some(request)).await
    }

    pub async fn remove_network(&self, name: &Name) -> Result<()> {
        self.send(Method::DELETE, &format!("/v1/networks/{name}"), NOTHING)
            .await
    }

    pub async fn connect_endpoint(
        &self,
        network: &Name,
        request: &ConnectRequest,
    ) -> Result<Endpoint> {
        let path = format!("/v1/networks/{network}/endpoints");
        self.send(Method::POST, &path, Some(request)).await
    }

    pub async fn disconnect_endpoint(&self, network: &Name, endpoint: &Name) -> Result<Endpoint> {
        let path = format!("/v1/networks/{network}/endpoints/{endpoint}");
        self.send(Method::DELETE, &path, NOTHING).await
    }

    pub async fn endpoints(&self) -> Result<Vec<Endpoint>> {
        self.get("/v1/endpoints").await
    }

    pub async fn endpoint(&self, name: &Name) -> Result<Endpoint> {
        self.get(&format!("/v1/endpoints/{name}")).await
    }

    pub async fn add_endpoint(&self, request: &EndpointRequest) -> Result<Endpoint> {
        self.send(Method::POST, "/v1/endpoints", Some(request))
            .await
    }

    pub async fn remove_endpoint(&self, name: &Name) -> Result<()> {
        self.send(Method::DELETE, &format!("/v1/endpoints/{name}"), NOTHING)
            .await
    }

    pub async fn version(&self) -> Result<Version> {
        self.get("/v1/version").await
    }

    pub async fn attach(&self, request: &AttachRequest) -> Result<Attached> {
        self.send(Method::POST, "/v1/attachments", Some(request))
            .await
    }

    pub async fn detach(&self, attachment: &Owned) -> Result<Detached> {
        self.send(Method::DELETE, "/v1/attachments", Some(attachment))
            .await
    }

    pub async fn check(&self, attachment: &Owned) -> Result<Checked> {
        self.send(Method::POST, "/v1/attachments/check", Some(attachment))
            .await
    }

    pub async fn collect(&self, request: &CollectRequest) -> Result<Collected> {
        self.send(Method::POST, "/v1/attachments/collect", Some(request))
            .await
    }

    pub async fn publish(&self, name: &Name, request: &PublishRequest) -> Result<Endpoint> {
        let path = format!("/v1/endpoints/{name}/publishes");
        self.send(Method::POST, &path, Some(request)).await
    }

    pub async fn unpublish(&self, name: &Name, publish: Vec<Spec>) -> Result<Endpoint> {
        let path = format!("/v1/endpoints/{name}/publishes");
        self.send(Method::DELETE, &path, Some(&UnpublishRequest { publish }))
            .await
    }

    pub async fn flows(&self, filter: &FlowFilter) -> Result<Vec<Flow>> {
        self.get(&format!("/v1/flows{}", filter.query())).await
    }

    pub async fn flush(&self, endpoint: Option<&Name>) -> Result<Flushed> {
        let filter = FlowFilter {
            endpoint: endpoint.cloned(),
            ..FlowFilter::default()
        };
        let path = format!("/v1/flows{}", filter.query());
        self.send(Method::DELETE, &path, NOTHING).await
    }

    pub async fn shutdown(&self) -> Result<()> {
        self.send(Method::POST, "/v1/shutdown", NOTHING).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.send(Method::GET, path, NOTHING).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let (response, connection) = self.ask(method, path, body).await?;
        let _connection = AbortOnDrop(connection);
        if !response.status().is_success() {
            return Err(self.refusal(path, response).await);
        }
        let bytes = self.whole(response).await?;
        serde_json::from_slice(&bytes).map_err(|source| ClientError::Answer { source })
    }

    /// Sends a request; the answer, and the connection that it comes by.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(Response<Incoming>, JoinHandle<()>)> {
        let stream = self.connect().await?;
        let pid = stream.peer_cred().ok().and_then(|agent| agent.pid());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.http(e))?;
        let connection = tokio::spawn(connection.map(drop));
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|e| self.http(e))?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "netfw")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| self.http(e))?;
        let answer = self.telling_of(pid, sender.send_request(request));
        let answer = match self.patience {
            None => answer.await,
            Some(patience) => timeout(patience, answer)
                .await
                .map_err(|_| ClientError::Silent { pid, patience })?,
        };
        Ok((answer.map_err(|e| self.http(e))?, connection))
    }

    /// Waits for the answer and, where it is long in coming, says so.
    async fn telling_of<T>(&self, pid: Option<i32>, answer: impl Future<Output = T>) -> T {
        tokio::pin!(answer);
        if self.tells
            && let Ok(answer) = timeout(TELL, &mut answer).await
        {
            return answer;
        }
        if self.tells {
            let why = match self.is_alive().await {
                true => "has this to do, or another change before it".to_owned(),
                false => format!("does not answer: {}", remedy(pid)),
            };
            // Nobody may be reading.
            let _ = writeln!(
                io::stderr(),
                "netfw: waiting for the agent ({}), which {why}",
                process(pid)
            );
        }
        answer.await
    }

    /// Does the agent answer what waits for no change?
    async fn is_alive(&self) -> bool {
        let asking = Self {
            patience: Some(GLANCE),
            tells: false,
            ..self.clone()
        };
        // On the heap: it asks as this does.
        Box::pin(asking.version()).await.is_ok()
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<Bytes> {
        let body = Limited::new(response.into_body(), LIMIT).collect().await;
        Ok(body.map_err(|e| self.http(e))?.to_bytes())
    }

    /// What the agent said in an answer that is none.
    async fn refusal(&self, path: &str, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        let bytes = match self.whole(response).await {
            Ok(bytes) => bytes,
            Err(error) => return error,
        };
        match serde_json::from_slice(&bytes) {
            Ok(Failure {
                error,
                kind,
                faults,
            }) => ClientError::Refused {
                error,
                kind,
                faults,
            },
            // Not the agent's own words: axum's, for a path that it does not know.
            Err(_) => ClientError::Refused {
                error: format!(
                    "the agent answered {status} to {path}: {}",
                    String::from_utf8_lossy(&bytes)
                ),
                kind: FailureKind::Internal,
                faults: Vec::new(),
            },
        }
    }

    /// Waits for an agent that is starting: `netfw agent & netfw endpoint add …` is one line.
    async fn connect(&self) -> Result<UnixStream> {
        let asked = Instant::now();
        loop {
            let error = match self.try_connect().await {
                Err(error @ ClientError::NotRunning { .. }) => error,
                done => return done,
            };
            // Not before: whoever reads /proc/locks waits for an RCU grace period (locks_start takes
            // file_rwsem for writing), and so does who locks a file meanwhile, machine-wide.
            let (patience, error) = if self.paths.is_locked() {
                let instance = self.paths.instance.clone();
                (STARTING, ClientError::Starting { instance })
            } else {
                (BEFORE, error)
            };
            if asked.elapsed() >= patience {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn try_connect(&self) -> Result<UnixStream> {
        UnixStream::connect(&self.socket)
            .await
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::NotRunning {
                        instance: self.paths.instance.clone(),
                    }
                }
                io::ErrorKind::PermissionDenied => ClientError::Permission {
                    socket: self.socket.clone(),
                },
                _ => ClientError::Connect {
                    socket: self.socket.clone(),
                    source,
                },
            })
    }

    fn http(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Http {
            socket: self.socket.clone(),
            source: source.into(),
        }
    }
}

const NOTHING: Option<&()> = None;

/// Lines of JSON, as they come.
pub struct Lines {
    body: Incoming,
    /// The beginning of a line.
    begun: Vec<u8>,
    instance: Name,
    _connection: AbortOnDrop,
}

impl Lines {
    /// The next one. There is one until the agent ends.
    pub async fn next(&mut self) -> Result<Line> {
        loop {
            if let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.begun.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map_err(|source| ClientError::Answer { source });
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.begun.extend(frame.into_data().unwrap_or_default()),
                // In order, or killed.
                None | Some(Err(_)) => {
                    let instance = self.instance.clone();
                    return Err(ClientError::Ended { instance });
                }
            }
        }
    }
}

fn process(pid: Option<i32>) -> String {
    pid.map_or("unknown process".into(), |pid| format!("process {pid}"))
}

/// What may be the matter with an agent that does not answer, and what to do. Packets do not need it.
fn remedy(pid: Option<i32>) -> String {
    let Some(pid) = pid else {
        return "its log says more".into();
    };
    // `PID (COMMAND) STATE …`, and a command may hold parentheses.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    if state.is_some_and(|state| state.starts_with(['T', 't'])) {
        return format!("it is stopped, and `kill -CONT {pid}` has it go on");
    }
    format!(
        "it has much to do, or hangs; its log says more. Packets go on without it: `kill -KILL {pid}` ends one \
         that hangs, `netfw agent` starts another"
    )
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
