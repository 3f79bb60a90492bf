//! Telling of single packets: to `netfw monitor` what was dropped, to `netfw trace` what the programs decided.
//!
//! Each listener has a filter in the kernel, and a queue here. One task reads the ring, puts names to the
//! numbers, and hands each event to those who wanted it. Nobody waits for a listener: where its queue is
//! full, it is told how much it has missed. As long as somebody traces, programs run that tell of every
//! packet ([`crate::bpf::Traced`]); another task takes them out, so that the ring is read meanwhile.

use std::{
    io,
    os::fd::AsRawFd,
    sync::{Arc, Mutex as Lock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use netfw_common::event::{Event, Filter, wants};
use nix::time::{ClockId, clock_gettime};
use tokio::{
    io::{
        Interest,
        unix::{AsyncFd, AsyncFdReadyMutGuard},
    },
    sync::{Mutex, MutexGuard, Notify, mpsc},
};

use super::{Agent, AgentError, start::options, told::Names};
use crate::{
    api::watch::Line,
    bpf::{Filters, PacketEvents, Traced},
    filter::WatchFilter,
};

/// Events a tick (1.07 s) for each listener, from all CPUs together: more than anybody reads, and a small
/// part of what one CPU can drop.
const RATE: u32 = 1000;
/// Lines that wait for a listener.
const QUEUE: usize = 4096;
/// Events that are looked up in one go, with the agent held.
const BATCH: usize = 256;
/// Events that wait for an agent that others hold; more stay in the ring.
const WAITING: usize = 16 * BATCH;
/// How often listeners are told what they have missed.
const TELL: Duration = Duration::from_secs(1);

/// What somebody listens for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    Drops,
    Traces,
}

/// Who listens.
pub struct Watch {
    state: Lock<State>,
    /// One change of programs at a time.
    swapping: Mutex<()>,
    /// A listener is gone.
    left: Notify,
}

struct State {
    filters: Filters,
    listeners: Vec<Listener>,
    /// The agent ends.
    closed: bool,
}

struct Listener {
    number: u32,
    wanted: Wanted,
    /// By the clock of [`Event::time`]: what is older was another's who had the number. The programs look at the
    /// clock before they look at filters.
    since: u64,
    lines: mpsc::Sender<Bytes>,
    /// Events that found its queue full.
    missed: u64,
    /// Of those that the kernel left out, how many it has been told of.
    told: (u64, u64),
}

impl Listener {
    fn wants(&self, event: &Event) -> bool {
        event.filters >> self.number & 1 != 0 && event.time >= self.since
    }
}

/// What a listener is told, until it is dropped.
pub struct Told {
    watch: Arc<Watch>,
    number: u32,
    lines: mpsc::Receiver<Bytes>,
}

impl Told {
    /// The next lines; None: the agent ends.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.lines.recv().await
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let mut state = self.watch.state();
        state.listeners.retain(|other| other.number != self.number);
        if let Err(error) = state.filters.remove(self.number) {
            tracing::warn!(error = %crate::chain(&error), "a filter is left");
        }
        drop(state);
        self.watch.left.notify_one();
    }
}

impl Watch {
    pub fn new(filters: Filters) -> Arc<Self> {
        Arc::new(Self {
            state: Lock::new(State {
                filters,
                listeners: Vec::new(),
                closed: false,
            }),
            swapping: Mutex::default(),
            left: Notify::new(),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets everybody go: their streams end.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.listeners.clear();
    }

    fn listen(self: &Arc<Self>, wanted: Wanted, filter: &Filter) -> Result<Told, AgentError> {
        let mut state = self.state();
        let since = now();
        let number = state.filters.add(filter)?.ok_or(AgentError::Listeners)?;
        let (sender, lines) = mpsc::channel(QUEUE);
        let told = state.filters.suppressed(number)?;
        if !state.closed {
            state.listeners.push(Listener {
                number,
                wanted,
                since,
                lines: sender,
                missed: 0,
                told,
            });
        }
        drop(state);
        Ok(Told {
            watch: self.clone(),
            number,
            lines,
        })
    }

    fn has_traces(&self) -> bool {
        let state = self.state();
        let mut listeners = state.listeners.iter();
        listeners.any(|listener| listener.wanted == Wanted::Traces)
    }

    /// Hands an event to those who want it.
    fn hand_out(&self, event: &Event, names: &Names) {
        let mut state = self.state();
        for wanted in [Wanted::Drops, Wanted::Traces] {
            let mut line = None;
            for listener in &mut state.listeners {
                if listener.wanted != wanted || !listener.wants(event) {
                    continue;
                }
                let line = line.get_or_insert_with(|| match wanted {
                    Wanted::Drops => json(&names.drop(event)),
                    Wanted::Traces => json(&names.decision(event)),
                });
                if listener.lines.try_send(line.clone()).is_err() {
                    listener.missed += 1;
                }
            }
        }
    }

    /// Tells everybody what they have missed.
    fn tell_suppressed(&self) {
        let mut state = self.state();
        let State {
            filters, listeners, ..
        } = &mut *state;
        for listener in listeners {
            let Ok(now) = filters.suppressed(listener.number) else {
                continue;
            };
            let events = listener.missed + now.0 - listener.told.0 + now.1 - listener.told.1;
            let line = json(&Line::Suppressed { events });
            if events > 0 && listener.lines.try_send(line).is_ok() {
                (listener.missed, listener.told) = (0, now);
            }
        }
    }
}

/// By the clock of [`Event::time`].
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    now.as_nanos() as u64
}

fn json(line: &Line) -> Bytes {
    // Strings and numbers: it cannot fail.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// Begins to tell somebody of what suits the filter.
pub async fn listen(
    agent: &Mutex<Agent>,
    watch: &Arc<Watch>,
    wanted: Wanted,
    filter: &WatchFilter,
) -> Result<Told, AgentError> {
    if wanted == Wanted::Drops {
        let filter = agent.lock().await.filter(wanted, filter)?;
        return watch.listen(wanted, &filter);
    }
    let _one = watch.swapping.lock().await;
    let (filter, options) = {
        let agent = agent.lock().await;
        let options = (!agent.dataplane.is_traced()).then(|| options(&agent.config, &agent.wanted));
        (agent.filter(wanted, filter)?, options)
    };
    if let Some(options) = options {
        // The verifier takes its time; nobody waits for it but this listener.
        let traced = tokio::task::block_in_place(|| Traced::load(&options))?;
        let mut agent = agent.lock().await;
        tokio::task::block_in_place(|| agent.trace(Some(traced)))?;
    }
    let told = watch.listen(wanted, &filter);
    if told.is_err() {
        watch.left.notify_one();
    }
    told
}

impl Agent {
    /// The listener's filter as the programs have it.
    fn filter(&self, wanted: Wanted, filter: &WatchFilter) -> Result<Filter, AgentError> {
        let endpoint = match &filter.endpoint {
            Some(name) => self.wanted_endpoint(name)?.counter,
            None => 0,
        };
        Ok(Filter {
            endpoint,
            rate: RATE,
            wants: match wanted {
                Wanted::Drops => wants::DROPS,
                Wanted::Traces => wants::TRACES,
            },
            ..filter.record()
        })
    }

    /// Has programs run that trace, or those that do not.
    fn trace(&mut self, traced: Option<Traced>) -> Result<(), AgentError> {
        let on = traced.is_some();
        let swapped = self.dataplane.set_traced(traced);
        if let Err(error) = swapped {
            if on && let Err(error) = self.dataplane.set_traced(None) {
                tracing::warn!(error = %crate::chain(&error), "some programs still trace");
            }
            return Err(error.into());
        }
        tracing::info!(on, "programs that trace");
        Ok(())
    }

    /// The ordinary programs again, if others run.
    pub(super) fn stop_tracing(&mut self) {
        if self.dataplane.is_traced()
            && let Err(error) = self.trace(None)
        {
            tracing::warn!(error = %crate::chain(&error), "some programs still trace");
        }
    }
}

/// Reads the ring, for as long as the agent runs.
pub async fn keep_telling(agent: &Mutex<Agent>, watch: &Watch, events: PacketEvents) {
    let mut events = match registered(events) {
        Ok(events) => events,
        Err(error) => return tracing::warn!(%error, "nobody can be told of packets"),
    };
    let mut tell = tokio::time::interval(TELL);
    tell.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ready = events.readable() => match ready {
                Ok(ready) => drop(ready),
                Err(_) => return,
            },
            _ = tell.tick() => {
                watch.tell_suppressed();
                continue;
            }
        }
        let Ok((batch, agent)) = gather(&mut events, agent).await else {
            return;
        };
        let names = Names::of(&agent, &batch);
        drop(agent);
        for event in &batch {
            watch.hand_out(event, &names);
        }
    }
}

fn registered<E: AsRawFd>(events: E) -> io::Result<AsyncFd<E>> {
    // SAFETY: the ring owns its descriptor, always the same one, and closes it only when it is dropped,
    // which AsyncFd does after deregistering.
    let registered = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) };
    Ok(registered?)
}

/// The events that there are, and the agent. The ring is small: while others hold the agent, it is emptied.
async fn gather<'a, E, A>(
    events: &mut AsyncFd<E>,
    agent: &'a Mutex<A>,
) -> io::Result<(Vec<Event>, MutexGuard<'a, A>)>
where
    E: Iterator<Item = Event> + AsRawFd,
{
    let mut gathered = Vec::new();
    let mut take = |mut ready: AsyncFdReadyMutGuard<'_, E>| {
        let before = gathered.len();
        gathered.extend(ready.get_inner_mut().take(BATCH));
        if gathered.len() - before < BATCH {
            ready.clear_ready();
        }
        gathered.len()
    };
    let mut waiting = take(events.readable_mut().await?);
    let free = agent.lock();
    tokio::pin!(free);
    loop {
        tokio::select! {
            biased;
            agent = &mut free => return Ok((gathered, agent)),
            ready = events.readable_mut(), if waiting < WAITING => waiting = take(ready?),
        }
    }
}

/// Takes tracing programs out when nobody traces any longer, for as long as the agent runs.
pub async fn keep_untracing(agent: &Mutex<Agent>, watch: &Watch) {
    loop {
        watch.left.notified().await;
        let _one = watch.swapping.lock().await;
        if !watch.has_traces() {
            let mut agent = agent.lock().await;
            tokio::task::block_in_place(|| agent.stop_tracing());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::{fd::RawFd, unix::net::UnixStream},
    };

    use nix::{
        errno::Errno,
        sys::socket::{MsgFlags, recv},
    };

    use super::*;

    /// A byte an event.
    struct Ring(UnixStream);

    impl Iterator for Ring {
        type Item = Event;

        fn next(&mut self) -> Option<Event> {
            let mut byte = [0];
            self.0.read_exact(&mut byte).ok()?;
            Some(Event {
                time: byte[0].into(),
                ..Event::default()
            })
        }
    }

    impl AsRawFd for Ring {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_raw_fd()
        }
    }

    #[tokio::test]
    async fn the_ring_is_read_while_others_hold_the_agent() {
        let (ring, mut kernel) = UnixStream::pair().unwrap();
        ring.set_nonblocking(true).unwrap();
        let fd = ring.as_raw_fd();
        let is_read = || recv(fd, &mut [0], MsgFlags::MSG_PEEK) == Err(Errno::EAGAIN);
        let agent = Mutex::new(());
        let mut events = registered(Ring(ring)).unwrap();
        let held = agent.lock().await;
        kernel.write_all(&[1]).unwrap();
        let others = async {
            for more in [2, 3] {
                let read = async {
                    while !is_read() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                let read = tokio::time::timeout(Duration::from_secs(10), read).await;
                read.expect("somebody reads it");
                kernel.write_all(&[more]).unwrap();
            }
            drop(held);
        };
        let (gathered, ()) = tokio::join!(gather(&mut events, &agent), others);
        let (gathered, _agent) = gathered.unwrap();
        let times: Vec<u64> = gathered.iter().map(|event| event.time).collect();
        assert_eq!(times[..2], [1, 2]);
    }

    #[test]
    fn events_of_an_earlier_listener_are_nobodys() {
        let (lines, _told) = mpsc::channel(1);
        let listener = Listener {
            number: 3,
            wanted: Wanted::Drops,
            since: now(),
            lines,
            missed: 0,
            told: (0, 0),
        };
        let event = |filters, time| Event {
            filters,
            time,
            ..Event::default()
        };
        assert!(listener.wants(&event(1 << 3, now())));
        assert!(!listener.wants(&event(1 << 3, listener.since - 1)));
        assert!(!listener.wants(&event(1 << 2, now())));
    }
}
