//! How long, how often and how much: the whole run, and `--quick`.

use std::time::Duration;

#[derive(Clone)]
pub struct Plan {
    /// Of every load on every contender.
    pub rounds: usize,
    pub publishes: Vec<u32>,
    pub flows: Vec<u32>,
    /// Of a round with packets.
    pub packets: Duration,
    /// Of a round with new flows.
    pub new_flows: Duration,
    /// Of a round with connections.
    pub connections: Duration,
    /// Of a round with requests on connections that are kept.
    pub requests: Duration,
    /// Of a round with bulk TCP.
    pub bulk: Duration,
    /// Of a round with questions and answers.
    pub latency: Duration,
    /// Is a million flows set up? That alone takes minutes.
    pub million: bool,
    /// Containers that are there beforehand, where that may make a difference; growing.
    pub endpoints: Vec<u32>,
    /// Published at once; growing.
    pub ports: Vec<u16>,
    /// How long a contender may take for one point of those.
    pub patience: Duration,
    /// Of runs of each program on each packet, in a round.
    pub blocks: usize,
}

impl Plan {
    /// About half an hour.
    pub fn full() -> Self {
        Self {
            rounds: 7,
            publishes: vec![10, 1000, 10_000, 60_000],
            flows: vec![1, 1000, 100_000],
            packets: Duration::from_secs(1),
            new_flows: Duration::from_millis(500),
            connections: Duration::from_secs(2),
            requests: Duration::from_secs(2),
            bulk: Duration::from_secs(2),
            latency: Duration::from_secs(2),
            million: true,
            endpoints: vec![10, 500, 1000],
            ports: vec![100, 1000, 10_000],
            patience: Duration::from_secs(90),
            blocks: 20,
        }
    }

    /// Two minutes: enough to see what the whole run will show.
    pub fn quick() -> Self {
        Self {
            rounds: 3,
            publishes: vec![10, 10_000],
            flows: vec![1000],
            packets: Duration::from_millis(150),
            new_flows: Duration::from_millis(100),
            connections: Duration::from_millis(250),
            requests: Duration::from_millis(200),
            bulk: Duration::from_millis(200),
            latency: Duration::from_millis(200),
            million: false,
            endpoints: vec![0, 100],
            ports: vec![100, 10_000],
            patience: Duration::from_secs(5),
            blocks: 3,
        }
    }
}
