//! The server of the API: routes and status codes. What a request does is `agent`'s.
//!
//! A request runs to its end even where the client goes away: it is spawned, because a change
//! that is dropped half-way would leave the store and the kernel apart.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, Query, Request, State, rejection::QueryRejection},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Mutex, Notify},
    task::block_in_place,
};

use super::owned::{
    AttachRequest, Attached, Checked, CollectRequest, Collected, Detached, Owned, Version,
};
use super::types::{
    Applied, ApplyRequest, ConnectRequest, Endpoint, EndpointRequest, Failure, FailureKind, Flow,
    Flushed, Network, NetworkDetails, NetworkRequest, PublishRequest, Stats, Status,
    UnpublishRequest,
};
use crate::{
    agent::{
        Agent, AgentError, flow, memory,
        purge::carry_out,
        saved::Saved,
        view::wire,
        watch::{self, Wanted, Watch},
    },
    filter::{FlowFilter, WatchFilter},
    metrics::{self, Events, fresh::Pages, process::Process},
    name::Name,
};

/// Longest request, in bytes.
pub const BODY_LIMIT: usize = 1 << 20;

#[derive(Clone)]
pub struct Shared {
    pub agent: Arc<Mutex<Agent>>,
    /// Who is told of packets.
    pub watch: Arc<Watch>,
    /// Told when somebody asks the agent to end.
    pub shutdown: Arc<Notify>,
    pub pages: Arc<Pages>,
    pub events: Events,
}

pub fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/stats", get(stats))
        .route("/v1/networks", get(networks).post(create_network))
        .route("/v1/networks/{name}", get(network).delete(remove_network))
        .route("/v1/networks/{name}/endpoints", post(connect))
        .route(
            "/v1/networks/{name}/endpoints/{endpoint}",
            delete(disconnect),
        )
        .route("/v1/endpoints", get(endpoints).post(add_endpoint))
        .route(
            "/v1/endpoints/{name}",
            get(endpoint).delete(remove_endpoint),
        )
        .route(
            "/v1/endpoints/{name}/publishes",
            post(publish).delete(unpublish),
        )
        .route("/v1/attachments", post(attach).delete(detach))
        .route("/v1/attachments/check", post(check))
        .route("/v1/attachments/collect", post(collect))
        .route("/v1/version", get(version))
        .route("/v1/flows", get(flows).delete(flush))
        .route("/v1/monitor", get(monitor))
        .route("/v1/trace", get(trace))
        .route("/v1/store", get(store))
        .route("/v1/apply", post(apply))
        .route("/v1/shutdown", post(shutdown))
        .route("/metrics", get(metrics))
        .fallback(async || {
            let failure = Failure {
                error: "the API has no such path: is the client another version of netfw?".into(),
                kind: FailureKind::NotFound,
                faults: Vec::new(),
            };
            (StatusCode::NOT_FOUND, Json(failure))
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(from_fn_with_state(shared.events.clone(), count))
        .with_state(shared)
}

/// The metrics alone, for an address that others than root reach.
pub fn metrics_router(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .fallback(async || {
            (
                StatusCode::NOT_FOUND,
                "there is /metrics, and nothing else\n",
            )
        })
        .with_state(shared)
}

async fn count(State(events): State<Events>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let response = next.run(request).await;
    events.requested(method.as_str(), response.status().as_u16());
    response
}

struct Refusal(AgentError);

impl From<AgentError> for Refusal {
    fn from(error: AgentError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let kind = self.0.kind();
        let status = match kind {
            FailureKind::Invalid => StatusCode::BAD_REQUEST,
            FailureKind::NotFound => StatusCode::NOT_FOUND,
            FailureKind::Conflict => StatusCode::CONFLICT,
            FailureKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let error = crate::chain(&self.0);
        let faults = match self.0 {
            AgentError::Document(faults) => faults,
            _ => Vec::new(),
        };
        let failure = Failure {
            error,
            kind,
            faults,
        };
        (status, Json(failure)).into_response()
    }
}

type Answer<T> = Result<Json<T>, Refusal>;

/// Carries `work` to its end, whatever becomes of the client.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, AgentError>> + Send + 'static,
) -> Result<T, AgentError> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(join) => Err(AgentError::Fault(join.to_string())),
    }
}

/// What comes of `work`, which goes on without the client.
async fn answer<T: Send + 'static>(
    work: impl Future<Output = Result<T, AgentError>> + Send + 'static,
) -> Answer<T> {
    Ok(Json(to_the_end(work).await?))
}

/// A change, told to the name servers, and then the flows that must go with it, which others need not
/// wait for.
pub async fn change<T: Send + 'static>(
    shared: Shared,
    work: impl AsyncFnOnce(&mut Agent) -> Result<T, AgentError> + Send + 'static,
) -> Result<(T, usize), AgentError> {
    let mut agent = shared.agent.lock().await;
    let done = work(&mut agent).await;
    agent.set_names();
    // Also of what was undone.
    let purges = agent.take_purges();
    drop(agent);
    let flows = carry_out(&shared.agent, purges).await;
    Ok((done?, flows?))
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, AgentError> {
    serde_json::from_slice(body).map_err(|e| AgentError::Request(e.to_string()))
}

fn name(text: &str) -> Result<Name, AgentError> {
    text.parse().map_err(AgentError::Name)
}

async fn status(State(shared): State<Shared>) -> Answer<Status> {
    Ok(Json(shared.agent.lock().await.status()))
}

async fn stats(State(shared): State<Shared>) -> Answer<Stats> {
    Ok(Json(shared.agent.lock().await.stats()?))
}

async fn metrics(State(shared): State<Shared>) -> Result<Response, Refusal> {
    let text = shared.pages.get(async || {
        let process = Process::this().map_err(|source| AgentError::Io {
            path: "/proc/self".into(),
            source,
        })?;
        let agent = shared.agent.lock().await;
        // Map operations block; the other worker goes on with connections meanwhile.
        let page = block_in_place(|| agent.page(process))?;
        drop(agent);
        Ok::<_, AgentError>(page.text(&shared.events).into())
    });
    let text = text.await?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn networks(State(shared): State<Shared>) -> Answer<Vec<Network>> {
    Ok(Json(shared.agent.lock().await.network_views()))
}

async fn network(State(shared): State<Shared>, Path(text): Path<String>) -> Answer<NetworkDetails> {
    let name = name(&text)?;
    Ok(Json(shared.agent.lock().await.network_details(&name)?))
}

async fn create_network(State(shared): State<Shared>, body: Bytes) -> Answer<NetworkDetails> {
    let request: NetworkRequest = parse(&body)?;
    answer(async move {
        let created = change(shared, async move |agent| {
            agent.create_network(request).await
        });
        Ok(created.await?.0)
    })
    .await
}

async fn remove_network(State(shared): State<Shared>, Path(text): Path<String>) -> Answer<()> {
    let name = name(&text)?;
    answer(async move {
        let removed = change(shared, async move |agent| agent.remove_network(&name).await);
        let ((), _flows) = removed.await?;
        Ok(())
    })
    .await
}

async fn connect(
    State(shared): State<Shared>,
    Path(text): Path<String>,
    body: Bytes,
) -> Answer<Endpoint> {
    let network = name(&text)?;
    let request: ConnectRequest = parse(&body)?;
    answer(async move {
        let connected = change(shared, async move |agent| {
            agent.connect_endpoint(&network, request).await
        });
        Ok(connected.await?.0)
    })
    .await
}

async fn disconnect(
    State(shared): State<Shared>,
    Path((network, endpoint)): Path<(String, String)>,
) -> Answer<Endpoint> {
    let (network, endpoint) = (name(&network)?, name(&endpoint)?);
    answer(async move {
        let of = endpoint.clone();
        let disconnected = change(shared.clone(), async move |agent| {
            agent.disconnect_endpoint(&network, &endpoint).await
        });
        let ((), _flows) = disconnected.await?;
        shared.agent.lock().await.endpoint_view(&of)
    })
    .await
}

async fn store(State(shared): State<Shared>) -> Answer<Saved> {
    Ok(Json(shared.agent.lock().await.stored()?))
}

async fn apply(State(shared): State<Shared>, body: Bytes) -> Answer<Applied> {
    let request: ApplyRequest = parse(&body)?;
    answer(async move {
        let applied = change(shared, async move |agent| agent.apply(&request).await);
        Ok(applied.await?.0)
    })
    .await
}

async fn endpoints(State(shared): State<Shared>) -> Answer<Vec<Endpoint>> {
    Ok(Json(shared.agent.lock().await.endpoint_views()))
}

async fn endpoint(State(shared): State<Shared>, Path(text): Path<String>) -> Answer<Endpoint> {
    let name = name(&text)?;
    let asked = shared.agent.lock().await.endpoint_to_inspect(&name);
    let (mut endpoint, netlink, instance) = asked?;
    wire(&mut endpoint, &netlink, &instance).await;
    Ok(Json(endpoint))
}

async fn add_endpoint(State(shared): State<Shared>, body: Bytes) -> Answer<Endpoint> {
    let request: EndpointRequest = parse(&body)?;
    answer(async move {
        let added = change(shared, async move |agent| agent.add_endpoint(request).await);
        Ok(added.await?.0)
    })
    .await
}

async fn remove_endpoint(State(shared): State<Shared>, Path(text): Path<String>) -> Answer<()> {
    let name = name(&text)?;
    answer(async move {
        let removed = change(shared, async move |agent| {
            agent.remove_endpoint(&name).await
        });
        let ((), _flows) = removed.await?;
        Ok(())
    })
    .await
}

async fn publish(
    State(shared): State<Shared>,
    Path(text): Path<String>,
    body: Bytes,
) -> Answer<Endpoint> {
    let name = name(&text)?;
    let request: PublishRequest = parse(&body)?;
    answer(async move {
        let published = change(shared, async move |agent| agent.publish(&name, &request));
        Ok(published.await?.0)
    })
    .await
}

async fn unpublish(
    State(shared): State<Shared>,
    Path(text): Path<String>,
    body: Bytes,
) -> Answer<Endpoint> {
    let name = name(&text)?;
    let UnpublishRequest { publish } = parse(&body)?;
    answer(async move {
        let withdrawn = change(shared, async move |agent| agent.unpublish(&name, &publish));
        Ok(withdrawn.await?.0)
    })
    .await
}

async fn attach(State(shared): State<Shared>, body: Bytes) -> Answer<Attached> {
    let request: AttachRequest = parse(&body)?;
    answer(async move {
        let attached = change(shared, async move |agent| agent.attach_owned(request).await);
        Ok(attached.await?.0)
    })
    .await
}

async fn detach(State(shared): State<Shared>, body: Bytes) -> Answer<Detached> {
    let attachment: Owned = parse(&body)?;
    answer(async move {
        let detached = change(shared, async move |agent| {
            agent.detach_owned(&attachment).await
        });
        let (endpoint, _flows) = detached.await?;
        Ok(Detached { endpoint })
    })
    .await
}

async fn check(State(shared): State<Shared>, body: Bytes) -> Answer<Checked> {
    let attachment: Owned = parse(&body)?;
    Ok(Json(
        shared.agent.lock().await.check_owned(&attachment).await?,
    ))
}

async fn collect(State(shared): State<Shared>, body: Bytes) -> Answer<Collected> {
    let request: CollectRequest = parse(&body)?;
    answer(async move {
        let collected = change(shared, async move |agent| {
            Ok(agent.collect_owned(&request).await)
        });
        Ok(collected.await?.0)
    })
    .await
}

/// Whoever asks wants to know whether there is an agent at all, however busy: no lock.
async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").into(),
    })
}

type Filter = Result<Query<FlowFilter>, QueryRejection>;

fn filter(query: Filter) -> Result<FlowFilter, AgentError> {
    match query {
        Ok(Query(filter)) => Ok(filter),
        Err(rejection) => Err(AgentError::Request(rejection.body_text())),
    }
}

async fn flows(State(shared): State<Shared>, query: Filter) -> Result<Response, Refusal> {
    let flows = flow::list(&shared.agent, &filter(query)?).await?;
    Ok(block_in_place(|| {
        let answer = Json::<&[Flow]>(&flows).into_response();
        // There may be a million.
        drop(flows);
        memory::give_back();
        answer
    }))
}

async fn flush(State(shared): State<Shared>, query: Filter) -> Answer<Flushed> {
    let filter = filter(query)?;
    let endpoint = filter.endpoint.clone();
    let of_endpoint = FlowFilter {
        endpoint: endpoint.clone(),
        ..FlowFilter::default()
    };
    if filter != of_endpoint {
        let sentence = "flows are forgotten all, or by endpoint";
        return Err(AgentError::Request(sentence.into()).into());
    }
    answer(async move {
        let flushed = change(shared, async move |agent| agent.flush(endpoint.as_ref()));
        let ((), flows) = flushed.await?;
        Ok(Flushed { flows })
    })
    .await
}

type Watched = Result<Query<WatchFilter>, QueryRejection>;

async fn monitor(State(shared): State<Shared>, query: Watched) -> Result<Response, Refusal> {
    told(&shared, Wanted::Drops, query).await
}

async fn trace(State(shared): State<Shared>, query: Watched) -> Result<Response, Refusal> {
    told(&shared, Wanted::Traces, query).await
}

/// Lines as they come, until the client has enough or the agent ends.
async fn told(shared: &Shared, wanted: Wanted, query: Watched) -> Result<Response, Refusal> {
    let Query(filter) = query.map_err(|rejection| AgentError::Request(rejection.body_text()))?;
    let told = watch::listen(&shared.agent, &shared.watch, wanted, &filter).await?;
    let lines = futures::stream::unfold(told, async |mut told| {
        let line = told.next().await?;
        Some((Ok::<_, Infallible>(line), told))
    });
    let lines = Body::from_stream(lines);
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], lines).into_response())
}

async fn shutdown(State(shared): State<Shared>) -> Answer<()> {
    shared.shutdown.notify_one();
    Ok(Json(()))
}
