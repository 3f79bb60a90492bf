//! The driver of Docker's networks: the agent as a plugin of dockerd, for networks (`docker network create -d
//! netfw`) and, where it is wanted, for their addresses (`--ipam-driver netfw`).
//!
//! dockerd posts JSON to a unix socket below `/run/docker/plugins`, one path a method. Its interface is
//! libnetwork's remote driver (moby: libnetwork/docs/remote.md, libnetwork/docs/ipam.md). What the agent does
//! for it is in [`crate::agent::docker`].
//!
//! | module | what |
//! |---|---|
//! | [`message`] | what dockerd asks and is told |
//! | [`driver`] | networks, and containers that join them |
//! | [`ipam`] | subnets and addresses |
//! | [`option`] | what `docker network create -o` says |
//! | [`port`] | what `docker run -p` says |

mod driver;
mod ipam;
mod message;
mod option;
mod port;

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Json, Router,
    body::{Bytes, to_bytes},
    extract::{
        ConnectInfo, Request, State,
        connect_info::{self, Connected},
    },
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::post,
    serve::IncomingStream,
};
use ipnet::IpNet;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixListener,
    sync::{Mutex, Notify},
};

use self::{driver::Pending, ipam::Ipam, message::Activated, option::OptionError};
use crate::{
    agent::{AgentError, run::listen},
    api::{
        server::{BODY_LIMIT, Shared},
        types::FailureKind,
    },
    name::Name,
    net::Namespace,
};

/// Where dockerd looks for plugins: `NAME.sock` is the one called NAME.
const PLUGINS: &str = "/run/docker/plugins";

const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// The socket of the driver that goes by the instance's name.
pub fn socket(instance: &Name) -> PathBuf {
    PathBuf::from(PLUGINS).join(format!("{instance}.sock"))
}

/// The driver's socket, for root alone.
pub fn bind(instance: &Name) -> Result<UnixListener, AgentError> {
    /// Another instance may be about removing the directory, which is empty.
    const ATTEMPTS: u32 = 10;
    let mut attempt = 1;
    loop {
        create_directory().map_err(|source| AgentError::Io {
            path: PLUGINS.into(),
            source,
        })?;
        match listen(&socket(instance), None) {
            Err(AgentError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS =>
            {
                attempt += 1;
            }
            done => return done,
        }
    }
}

/// dockerd's own is for root alone, whoever makes it.
fn create_directory() -> io::Result<()> {
    let mut private = fs::DirBuilder::new();
    private.recursive(true).mode(0o700).create(PLUGINS)
}

/// Removes the socket. Returns whether it was there.
pub fn remove_socket(instance: &Name) -> io::Result<bool> {
    match fs::remove_file(socket(instance)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        done => done.map(|()| true),
    }
}

/// Removes the directories that sockets of drivers are in, where nobody has anything in them.
pub fn remove_directories() {
    for directory in Path::new(PLUGINS).ancestors().take(2) {
        // dockerd's own has more in it, while there is a dockerd.
        if fs::remove_dir(directory).is_err() {
            break;
        }
    }
}

#[derive(Clone)]
pub(crate) struct Driver {
    shared: Shared,
    /// What is between two requests of dockerd's.
    pending: Arc<std::sync::Mutex<Pending>>,
    ipam: Arc<Mutex<Ipam>>,
}

/// Until it is told to stop, and then to the end of what is under way.
pub async fn serve(listener: UnixListener, shared: Shared, stop: Arc<Notify>) -> io::Result<()> {
    let service = router(shared).into_make_service_with_connect_info::<Caller>();
    axum::serve(listener, service)
        .with_graceful_shutdown(async move { stop.notified().await })
        .await
}

fn router(shared: Shared) -> Router {
    let driver = Driver {
        shared,
        pending: Default::default(),
        ipam: Default::default(),
    };
    let asked = Router::new()
        .route("/NetworkDriver.CreateNetwork", post(driver::create_network))
        .route("/NetworkDriver.DeleteNetwork", post(driver::delete_network))
        .route(
            "/NetworkDriver.CreateEndpoint",
            post(driver::create_endpoint),
        )
        .route(
            "/NetworkDriver.DeleteEndpoint",
            post(driver::delete_endpoint),
        )
        .route(
            "/NetworkDriver.EndpointOperInfo",
            post(driver::endpoint_info),
        )
        .route("/NetworkDriver.Join", post(driver::join))
        .route("/NetworkDriver.Leave", post(driver::leave))
        .route(
            "/NetworkDriver.ProgramExternalConnectivity",
            post(driver::program_external_connectivity),
        )
        .route(
            "/NetworkDriver.RevokeExternalConnectivity",
            post(driver::revoke_external_connectivity),
        )
        .route("/IpamDriver.RequestPool", post(ipam::request_pool))
        .route("/IpamDriver.ReleasePool", post(ipam::release_pool))
        .route("/IpamDriver.RequestAddress", post(ipam::request_address))
        .route("/IpamDriver.ReleaseAddress", post(ipam::release_address))
        .layer(from_fn(check_caller));
    Router::new()
        .merge(asked)
        .route("/Plugin.Activate", post(activate))
        .route("/NetworkDriver.GetCapabilities", post(driver::capabilities))
        .route("/NetworkDriver.DiscoverNew", post(nothing))
        .route("/NetworkDriver.DiscoverDelete", post(nothing))
        .route("/IpamDriver.GetCapabilities", post(ipam::capabilities))
        .route(
            "/IpamDriver.GetDefaultAddressSpaces",
            post(ipam::address_spaces),
        )
        // What is not known is left out by dockerd, where it may be.
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(from_fn(read_whole))
        .with_state(driver)
}

async fn activate() -> Response {
    answer(&Activated {
        implements: &["NetworkDriver", "IpamDriver"],
    })
}

/// Of networks that span several nodes, of which these are none.
async fn nothing() -> Response {
    done()
}

/// Before anything is answered: whoever still writes when the connection is closed takes that for a failure.
async fn read_whole(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    match to_bytes(body, BODY_LIMIT).await {
        Ok(body) => next.run(Request::from_parts(head, body.into())).await,
        Err(error) => DriverError::Request(error.to_string()).into_response(),
    }
}

/// Who is at the other end of the socket.
#[derive(Clone, Copy)]
struct Caller {
    pid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        let pid = credentials.and_then(|them| them.pid());
        Self {
            // 0: it is in a namespace of processes that we do not see.
            pid: pid
                .and_then(|pid| pid.try_into().ok())
                .filter(|pid| *pid > 0),
        }
    }
}

/// An interface that is made here is of use to a dockerd that lives here.
async fn check_caller(
    ConnectInfo(Caller { pid }): connect_info::ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let theirs = pid.and_then(|pid| Namespace::of_pid(pid).ok());
    match (pid, theirs, Namespace::current()) {
        (Some(pid), Some(theirs), Ok(ours)) if theirs != ours => {
            DriverError::Elsewhere { pid }.into_response()
        }
        _ => next.run(request).await,
    }
}

#[derive(Debug, thiserror::Error)]
enum DriverError {
    #[error(
        "dockerd (process {pid}) lives in another network namespace than the one that netfw serves: start both in \
         one (netfw agent --netns /proc/{pid}/ns/net)"
    )]
    Elsewhere { pid: u32 },
    #[error("the request cannot be read: {0}")]
    Request(String),
    #[error(transparent)]
    Option(#[from] OptionError),
    #[error("{text:?} is no address{what}")]
    Address { text: String, what: &'static str },
    #[error("port mapping {0}")]
    Port(String),
    #[error(
        "Docker has given no address: a network of netfw's takes Docker's own IPAM driver, or netfw's"
    )]
    NoAddress,
    #[error(
        "netfw's IPAM driver knows no {what}: leave it out, or --ipam-driver, since Docker's own knows it"
    )]
    Unsupported { what: &'static str },
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl DriverError {
    /// Never 404: to dockerd that says that a driver does without the method.
    fn status(&self) -> StatusCode {
        match self {
            Self::Agent(error) => match error.kind() {
                FailureKind::Invalid => StatusCode::BAD_REQUEST,
                FailureKind::NotFound | FailureKind::Conflict => StatusCode::CONFLICT,
                FailureKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            },
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl IntoResponse for DriverError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Failed {
            err: String,
        }
        let err = crate::chain(&self);
        tracing::warn!(error = err, "Docker was refused");
        (self.status(), answer(&Failed { err })).into_response()
    }
}

fn answer<T: Serialize>(body: &T) -> Response {
    ([(CONTENT_TYPE, MEDIA_TYPE)], Json(body)).into_response()
}

fn done() -> Response {
    answer(&serde_json::json!({}))
}

/// `ADDRESS/LENGTH`.
fn net(text: &str) -> Result<IpNet, DriverError> {
    text.parse().map_err(|_| DriverError::Address {
        text: text.to_owned(),
        what: " with the length of a prefix",
    })
}

/// dockerd names no media type.
fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, DriverError> {
    if body.is_empty() {
        // So it asks again where the agent ended amid its request.
        let sentence = "it is empty; the agent was restarted this very moment, perhaps: ask again";
        return Err(DriverError::Request(sentence.into()));
    }
    serde_json::from_slice(body).map_err(|error| DriverError::Request(error.to_string()))
}

type Answer = Result<Response, DriverError>;

type Asked = State<Driver>;
