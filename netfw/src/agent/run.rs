//! The agent as a process: it takes the instance, enters the node's namespace, starts, serves, and
//! ends on a signal or on request. The data plane goes on without it.

use std::{
    fs,
    io::IsTerminal as _,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aya_log::EbpfLogger;
use futures::FutureExt;
use nix::unistd::{Gid, Group, chown};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::{Mutex, Notify},
    time::Instant,
};

use super::{
    Agent, AgentError, capability,
    config::Config,
    down::{Report, clear},
    flow::Part,
    memory,
    notify::ServiceManager,
    paths::Paths,
    purge::keep_purging,
    watch::{Watch, keep_telling, keep_untracing},
};
use crate::{
    api::{
        connections,
        server::{Shared, metrics_router, router},
    },
    bpf::{DataPlane, Epoch},
    docker,
    metrics::serve::{Listener, is_open},
    net::{Change, Monitor, Namespace},
};

/// How often a portion of a flow table is swept, of each in turn: what expired flows take is bounded,
/// so none need go at once.
const SWEEP: Duration = Duration::from_millis(250);
/// Steps of some 4,000 entries that a portion is at most: a million flows are then walked within two
/// minutes.
const STEPS: usize = 32;
/// Changes of the node come in bursts: one look at the end of each is enough.
const SETTLE: Duration = Duration::from_millis(20);
/// How many more messages are read once the agent is free for what they say.
const MESSAGES: usize = 256;
/// Something is amiss with an uplink, or netlink lost a message: look again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// For requests under way when the agent is told to end.
const GRACE: Duration = Duration::from_secs(5);

/// Runs until told to end. The calling thread must be the process's only one: the namespace is
/// entered before the runtime starts its threads, which inherit it.
pub fn run(config: Config) -> Result<(), AgentError> {
    memory::be_frugal();
    capability::keep_needed()?;
    let paths = Paths::of(&config.instance);
    let _lock = paths.lock()?;
    let notify = ServiceManager::from_environment();
    if let Some(path) = &config.netns {
        Namespace::at_path(path)?.enter()?;
    }
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| AgentError::Io { path, source }
    };
    let fresh = !paths.store().exists() && !DataPlane::exists(&config.instance);
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(io(Path::new("the runtime")))?
        .block_on(serve(config, &paths, &notify));
    if result.is_err() && fresh {
        // It could not start, and nothing was there before: so nothing stays.
        let mut report = Report::default();
        clear(&paths.instance, &paths, &mut report);
        for error in report.errors {
            tracing::warn!("{error}");
        }
    }
    result
}

async fn serve(config: Config, paths: &Paths, notify: &ServiceManager) -> Result<(), AgentError> {
    // Before anything is made: a signal that comes during the start ends the agent in order.
    let socket = paths.socket();
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| AgentError::Io { path, source }
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(io(Path::new("SIGTERM")))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io(Path::new("SIGINT")))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(io(Path::new("SIGHUP")))?;
    // Told of changes from before the first look, so that none is missed between.
    let mut monitor = Monitor::current()?;
    let group = config.socket_group.clone();
    let program_log = config.program_log;
    let driver = config.docker.then(|| config.instance.clone());
    if driver.is_none() {
        // A killed one's keeps dockerd waiting.
        let _ = docker::remove_socket(&config.instance);
    }
    // Before anything is made, too: an address that cannot be had ends the start.
    let metrics = config.metrics.clone();
    let scraped = match &metrics {
        Some(address) => Some(Listener::bind(address, group.as_deref())?),
        None => None,
    };
    let mut agent = Agent::start(config, &paths.store()).await?;
    if program_log {
        tokio::spawn(forward_log(agent.logger()?));
    }
    memory::give_back();
    let epoch = agent.epoch();
    let (filters, packets) = agent.take_watch()?;
    let watch = Watch::new(filters);
    let ready = agent.status();
    if let Some(warning) = agent.no_metrics_address() {
        tracing::warn!("{warning}");
    }
    let events = agent.events().clone();
    let shared = Shared {
        agent: Arc::new(Mutex::new(agent)),
        watch: watch.clone(),
        shutdown: Arc::new(Notify::new()),
        pages: Arc::default(),
        events,
    };
    let listener = listen(&socket, group.as_deref())?;
    let stop = Arc::new(Notify::new());
    let server = {
        let stop = stop.clone();
        let app = router(shared.clone());
        tokio::spawn(connections::serve(listener, app, stop))
    };
    let stop_driver = Arc::new(Notify::new());
    let driver = driver.and_then(|instance| match docker::bind(&instance) {
        Ok(listener) => {
            let served = docker::serve(listener, shared.clone(), stop_driver.clone());
            Some(tokio::spawn(served))
        }
        Err(error) => {
            tracing::warn!(error = %crate::chain(&error), "Docker does not find its driver");
            None
        }
    });
    let scraper = scraped.map(|listener| {
        let app = metrics_router(shared.clone());
        tokio::spawn(listener.serve(app, shared.agent.clone()))
    });
    let sweeper = tokio::spawn(sweep(shared.agent.clone()));
    let teller = {
        let (agent, watch) = (shared.agent.clone(), watch.clone());
        tokio::spawn(async move { keep_telling(&agent, &watch, packets).await })
    };
    let untracer = {
        let (agent, watch) = (shared.agent.clone(), watch.clone());
        tokio::spawn(async move { keep_untracing(&agent, &watch).await })
    };
    let purger = {
        let agent = shared.agent.clone();
        tokio::spawn(async move { keep_purging(&agent).await })
    };
    tracing::info!(
        instance = %ready.instance,
        netns = %ready.netns.as_deref().unwrap_or(Path::new("the agent's own")).display(),
        uplinks = ready.uplinks.iter().filter(|u| u.served).count(),
        endpoints = ready.endpoints,
        socket = %socket.display(),
        "netfw {} is ready", ready.version
    );
    if let Some(address) = &metrics {
        let open = is_open(address);
        tracing::info!(
            %address,
            "metrics are served{}",
            if open { " to all who reach that, but for containers" } else { "" }
        );
    }
    notify
        .tell_of("READY=1", &shared.agent, Agent::sentence)
        .await;
    let mut beats = notify.beats();
    // A time rather than a pause, which every beat would begin anew.
    let mut look_again = Instant::now() + LOOK_AGAIN;
    let why = loop {
        tokio::select! {
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            _ = hangup.recv() => {
                // Of the terminal that it was started from.
                if std::io::stdin().is_terminal() {
                    break "SIGHUP";
                }
                tracing::info!(
                    "SIGHUP: nothing is done; the configuration is read when the agent starts, and packets go on \
                     while it is restarted"
                );
            }
            () = shared.shutdown.notified() => break "asked to",
            () = beats.next() => {
                let sentence = Agent::sentence;
                notify.tell_of("WATCHDOG=1", &shared.agent, sentence).await;
            }
            change = monitor.changed() => {
                if change == Change::Filters {
                    // At once: what the container sends meanwhile nobody translates.
                    let unfiltered = monitor.unfiltered();
                    shared.agent.lock().await.mend_filters(&unfiltered);
                    continue;
                }
                if change == Change::Forwarding {
                    let unforwarded = monitor.unforwarded();
                    shared.agent.lock().await.mend_forwarding(&unforwarded);
                    continue;
                }
                // At once, whoever has the agent: a way out may lead nowhere by now.
                raise(&epoch);
                // What the agent looks at is interfaces and their addresses.
                if matches!(change, Change::Neighbours | Change::Routes) {
                    continue;
                }
                let mut lost = change == Change::Lost;
                if lost {
                    tracing::debug!("netlink lost messages: looking at everything");
                }
                tokio::time::sleep(SETTLE).await;
                while let Some(next) = monitor.changed().now_or_never() {
                    lost |= next == Change::Lost;
                }
                raise(&epoch);
                let mut agent = shared.agent.lock().await;
                // What the agent did meanwhile is to its end.
                for _ in 0..MESSAGES {
                    let Some(next) = monitor.changed().now_or_never() else {
                        break;
                    };
                    lost |= next == Change::Lost;
                }
                let touched = monitor.touched();
                agent.mend_forwarding(&touched.unforwarded);
                if lost {
                    let all = agent.filtered();
                    agent.mend_filters(&all);
                } else {
                    agent.mend_filters(&touched.unfiltered);
                }
                let nothing_new = agent.expects(&touched) && !lost;
                drop(agent);
                if !nothing_new {
                    look(&shared.agent).await;
                }
            }
            () = tokio::time::sleep_until(look_again) => {
                look(&shared.agent).await;
                look_again = Instant::now() + LOOK_AGAIN;
            }
        }
    };
    notify.tell("STOPPING=1");
    for task in [sweeper, purger, teller, untracer]
        .into_iter()
        .chain(scraper)
    {
        task.abort();
        // One that blocks goes on after that, and must not find that the runtime is gone.
        let _ = task.await;
    }
    watch.close();
    stop.notify_one();
    if tokio::time::timeout(GRACE, server).await.is_err() {
        tracing::warn!("requests were still under way");
    }
    if let Some(driver) = driver {
        if let Err(error) = docker::remove_socket(&paths.instance) {
            tracing::debug!(%error, "the driver's socket");
        }
        stop_driver.notify_one();
        if tokio::time::timeout(GRACE, driver).await.is_err() {
            tracing::warn!("requests of Docker were still under way");
        }
    }
    // Whoever holds the lock changes nothing half-way.
    let mut last = shared.agent.lock().await;
    last.stop_tracing();
    if let Err(error) = fs::remove_file(&socket) {
        tracing::debug!(%error, "the socket was gone already");
    }
    tracing::info!(
        "stopped ({why}); the data plane keeps running without the agent: `netfw down{}` removes it",
        instance_option(&paths.instance)
    );
    Ok(())
}

fn raise(epoch: &Epoch) {
    if let Err(error) = epoch.raise() {
        tracing::warn!(error = %crate::chain(&error), "ways to the world may be old for a second");
    }
}

async fn look(agent: &Arc<Mutex<Agent>>) {
    let mut held = agent.lock().await;
    if let Err(error) = held.observe().await {
        tracing::warn!(error = %crate::chain(&error), "the node could not be looked at");
    }
    // The next change of the node is not to wait for a walk over a million flows.
    held.defer_purges();
}

async fn sweep(agent: Arc<Mutex<Agent>>) {
    let mut timer = tokio::time::interval(SWEEP);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        for part in Part::ALL {
            timer.tick().await;
            for _ in 0..STEPS {
                let mut agent = agent.lock().await;
                // Map operations block; the other worker goes on with connections meanwhile.
                match tokio::task::block_in_place(|| agent.sweep(part)) {
                    Ok((flows, end)) => {
                        if flows > 0 {
                            tracing::debug!(flows, ?part, "expired");
                        }
                        if end {
                            break;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(error = %crate::chain(&error), "the sweep failed");
                        break;
                    }
                }
            }
        }
    }
}

/// Hands on what the programs log, as it comes.
async fn forward_log(logger: Option<EbpfLogger<&'static dyn log::Log>>) {
    let Some(logger) = logger else {
        return tracing::debug!("the programs were built without logging");
    };
    // SAFETY: the logger owns its ring buffer's descriptor, always the same one, and closes it only
    // when it is dropped, which AsyncFd does after deregistering.
    let registered = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = match registered {
        Ok(logger) => logger,
        Err(error) => return tracing::warn!(%error, "the programs' log cannot be read"),
    };
    while let Ok(mut ready) = logger.readable_mut().await {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}

/// The socket, for root alone, or for root and a group. Whoever died left the file; we have the
/// lock, so nobody else's it is.
pub fn listen(socket: &Path, group: Option<&str>) -> Result<UnixListener, AgentError> {
    let io = |source| AgentError::Io {
        path: socket.to_owned(),
        source,
    };
    let gid = group.map(group_id).transpose()?;
    match fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    // Under a name that nobody connects to until its mode is right.
    let quiet = PathBuf::from(format!("{}.new", socket.display()));
    let _ = fs::remove_file(&quiet);
    let listener = UnixListener::bind(&quiet).map_err(io)?;
    fs::set_permissions(&quiet, fs::Permissions::from_mode(0o600)).map_err(io)?;
    if let Some(gid) = gid {
        chown(&quiet, None, Some(gid)).map_err(|errno| io(errno.into()))?;
        fs::set_permissions(&quiet, fs::Permissions::from_mode(0o660)).map_err(io)?;
    }
    fs::rename(&quiet, socket).map_err(io)?;
    Ok(listener)
}

fn group_id(name: &str) -> Result<Gid, AgentError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        _ => Err(AgentError::NoGroup(name.to_owned())),
    }
}

/// ` --instance NAME`, where it is not the default.
pub fn instance_option(instance: &str) -> String {
    if instance == super::config::DEFAULT_INSTANCE {
        String::new()
    } else {
        format!(" --instance {instance}")
    }
}
