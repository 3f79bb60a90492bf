//! Kubernetes' [Container Runtime Interface](https://github.com/kubernetes/cri-api), `runtime.v1`, as a kubelet speaks
//! it: gRPC on the runtime's socket. Of the messages only what a pod takes.

use std::{
    io::{ErrorKind, Read as _, Result as IoResult, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    pin::{Pin, pin},
    task::{Context as Task, Poll, Waker},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use h2::{
    RecvStream,
    client::{self, SendRequest},
};
use http::{
    HeaderMap, Request,
    header::{CONTENT_TYPE, TE},
};
use netfw_tests::wait::wait_for;
use prost::{
    Enumeration, Message,
    bytes::{BufMut as _, Bytes, BytesMut},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    select,
};

/// What a runtime takes to make a pod, on an emulated processor too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who asks a runtime for pods.
pub struct Client {
    pub socket: PathBuf,
}

impl Client {
    /// A call of `RuntimeService`, on a connection of its own.
    ///
    /// Without tokio's runtime: all of a process have files in common, which tests do not
    /// ([`files`](netfw_tests::files)). It is asked now and then whether it is done.
    pub fn call<A: Default + Message>(&self, method: &str, request: &impl Message) -> Result<A> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_nonblocking(true)?;
        let mut call = pin!(unary(Socket(stream), method, request));
        let mut task = Task::from_waker(Waker::noop());
        let answer = wait_for(method, PATIENCE, || match call.as_mut().poll(&mut task) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        });
        A::decode(answer?).with_context(|| format!("{method}: no answer of its type"))
    }
}

/// What was answered, and nothing else.
async fn unary(socket: Socket, method: &str, request: &impl Message) -> Result<Bytes> {
    let (client, connection) = client::handshake(socket).await?;
    select! {
        biased;
        ended = connection => bail!("the connection ended: {ended:?}"),
        answer = exchange(client, method, request) => answer,
    }
}

/// gRPC has a byte (0: not compressed) and the length before each message, and its status behind the last.
async fn exchange(
    client: SendRequest<Bytes>,
    method: &str,
    request: &impl Message,
) -> Result<Bytes> {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(request.encoded_len())?);
    request.encode(&mut frame)?;
    let head = Request::post(format!("http://cri/runtime.v1.RuntimeService/{method}"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(())?;
    let (answer, mut sending) = client.ready().await?.send_request(head, false)?;
    sending.send_data(frame.freeze(), true)?;

    let (head, mut body) = answer.await?.into_parts();
    let mut answer = read(&mut body).await?;
    let trailers = body.trailers().await?;
    // One that has no answer has its status with the head.
    judge(trailers.as_ref().unwrap_or(&head.headers))?;
    if answer.len() < 5 {
        bail!("{method}: no message in the answer");
    }
    Ok(answer.split_off(5))
}

/// Nobody is woken: who waits looks again.
struct Socket(UnixStream);

fn poll<T>(result: IoResult<T>) -> Poll<IoResult<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Poll::Pending,
        done => Poll::Ready(done),
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Task<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<IoResult<()>> {
        poll(self.0.read(buffer.initialize_unfilled())).map_ok(|length| buffer.advance(length))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Task<'_>,
        bytes: &[u8],
    ) -> Poll<IoResult<usize>> {
        poll(self.0.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<IoResult<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<IoResult<()>> {
        Poll::Ready(Ok(()))
    }
}

async fn read(body: &mut RecvStream) -> Result<Bytes> {
    let mut all = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

fn judge(headers: &HeaderMap) -> Result<()> {
    let text = |name| {
        headers
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
    };
    match text("grpc-status").as_deref() {
        Some("0") => Ok(()),
        Some(status) => bail!(
            "status {status}: {}",
            text("grpc-message").unwrap_or_default()
        ),
        None => bail!("no status"),
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    pub config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    pub hostname: String,
    #[prost(string, tag = "3")]
    pub log_directory: String,
    #[prost(message, repeated, tag = "5")]
    pub port_mappings: Vec<PortMapping>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct PortMapping {
    #[prost(enumeration = "Protocol", tag = "1")]
    pub protocol: i32,
    #[prost(int32, tag = "2")]
    pub container_port: i32,
    #[prost(int32, tag = "3")]
    pub host_port: i32,
    #[prost(string, tag = "4")]
    pub host_ip: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Enumeration)]
pub enum Protocol {
    Tcp = 0,
    Udp = 1,
}

/// Of `StopPodSandbox`, `RemovePodSandbox` and `PodSandboxStatus`; and what `RunPodSandbox` answers.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandbox {
    #[prost(string, tag = "1")]
    pub pod_sandbox_id: String,
}

/// Of `StartContainer`; and what `CreateContainer` answers.
#[derive(Clone, PartialEq, Message)]
pub struct Container {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// What those answer that have nothing to say.
#[derive(Clone, PartialEq, Message)]
pub struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub status: Option<PodSandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatus {
    #[prost(message, optional, tag = "5")]
    pub network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    pub ip: String,
    #[prost(message, repeated, tag = "2")]
    pub additional_ips: Vec<PodIp>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodIp {
    #[prost(string, tag = "1")]
    pub ip: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pub pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    pub config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pub sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    pub image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    pub command: Vec<String>,
    #[prost(string, tag = "11")]
    pub log_path: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ImageSpec {
    #[prost(string, tag = "1")]
    pub image: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, repeated, tag = "2")]
    pub cmd: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ExecSyncResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    pub conditions: Vec<RuntimeCondition>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RuntimeCondition {
    #[prost(string, tag = "1")]
    pub r#type: String,
    #[prost(bool, tag = "2")]
    pub status: bool,
}
