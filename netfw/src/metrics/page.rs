//! All metrics of one moment, made of what `status` and `stats` answer and of what was counted.

use std::fmt::{Error, Write as _};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::{Events, process::Process};
use crate::{
    api::types::{Counter, Stats, Status},
    publish::Publish,
};

/// A reading of all that there is, but for the events.
#[derive(Clone, Debug)]
pub struct Page {
    pub status: Status,
    pub stats: Stats,
    pub process: Process,
    /// Endpoints and publishes that `stats` has not, for want of room.
    pub left_out: usize,
}

/// A label's name and value.
type Label = (&'static str, String);

const NONE: Vec<Label> = Vec::new();

/// Whose a counter is; no publish: what is of none.
#[derive(Debug, PartialEq)]
struct Row {
    endpoint: String,
    publish: String,
    counter: Counter,
}

impl Page {
    /// In OpenMetrics' text form.
    pub fn text(self, events: &Events) -> String {
        let mut registry = Registry::default();
        registry.register(
            "netfw_dns_queries",
            "Queries to the networks' name servers, by what came of them",
            events.answers.family(),
        );
        registry.register(
            "netfw_api_requests",
            "Requests to the agent's API that were answered",
            events.requests.clone(),
        );
        registry.register(
            "netfw_reconciles",
            "Looks at the node that brought it in line with what is wanted",
            events.reconciles.clone(),
        );
        registry.register(
            "netfw_repairs",
            "Things put back that somebody else had taken away",
            events.repairs.clone(),
        );
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &registry) {
            // A string takes all that is written; a collector of ours that fails is a fault.
            let _ = write!(text, "# {error}");
        }
        text
    }

    /// What has counters of its own; endpoints go first.
    fn rows(&self) -> Vec<Row> {
        let endpoints = self.stats.endpoints.iter().map(|e| {
            // A packet counts once, so the sum over an endpoint's rows is its total, and none of them falls
            // when a publish is withdrawn.
            let published = e.publishes.iter().map(|p| p.counter);
            Row {
                endpoint: e.name.to_string(),
                publish: String::new(),
                counter: published.fold(e.total, less),
            }
        });
        let publishes = self.stats.endpoints.iter().flat_map(|e| {
            e.publishes.iter().map(|p| Row {
                endpoint: e.name.to_string(),
                publish: Publish::from(p.publish.clone()).to_string(),
                counter: p.counter,
            })
        });
        endpoints.chain(publishes).collect()
    }
}

fn less(total: Counter, part: Counter) -> Counter {
    Counter {
        rx_packets: total.rx_packets.saturating_sub(part.rx_packets),
        rx_bytes: total.rx_bytes.saturating_sub(part.rx_bytes),
        tx_packets: total.tx_packets.saturating_sub(part.tx_packets),
        tx_bytes: total.tx_bytes.saturating_sub(part.tx_bytes),
    }
}

/// The families, one after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counters<V: EncodeCounterValue>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<Label>, V)>,
    ) -> Result<(), Error> {
        let kind = MetricType::Counter;
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for (labels, value) in samples {
            // Without labels, no braces.
            if labels.is_empty() {
                family.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            } else {
                family
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            }
        }
        Ok(())
    }

    fn gauges<V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<Label>, V)>,
    ) -> Result<(), Error> {
        let kind = MetricType::Gauge;
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                family.encode_gauge(&value)?;
            } else {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    /// One gauge without labels.
    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> Result<(), Error> {
        self.gauges(name, None, help, [(NONE, value)])
    }

    fn infos(
        &mut self,
        name: &str,
        help: &str,
        labels: impl IntoIterator<Item = Vec<Label>>,
    ) -> Result<(), Error> {
        let kind = MetricType::Info;
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for labels in labels {
            family.encode_info(&labels)?;
        }
        Ok(())
    }
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), Error> {
        let mut families = Families(encoder);
        self.agent(&mut families)?;
        self.process(&mut families)?;
        self.wanted(&mut families)?;
        self.traffic(&mut families)?;
        self.programs(&mut families)
    }
}

impl Page {
    fn agent(&self, families: &mut Families) -> Result<(), Error> {
        families.infos(
            "netfw_build",
            "The agent's version, and that of the layout of its maps.",
            [vec![
                ("version", self.status.version.clone()),
                ("abi", netfw_common::ABI.to_string()),
            ]],
        )?;
        families.gauge(
            "netfw_warnings",
            "What is amiss by `netfw status`.",
            self.status.warnings.len(),
        )
    }

    /// By the names that all of Prometheus' clients use.
    fn process(&self, families: &mut Families) -> Result<(), Error> {
        let process = &self.process;
        families.gauges(
            "process_start_time",
            Some(Unit::Seconds),
            "When the agent was started, since the epoch.",
            [(NONE, process.started.as_secs_f64())],
        )?;
        families.counters(
            "process_cpu",
            Some(Unit::Seconds),
            "CPU time of the agent, user and system.",
            [(NONE, process.cpu.as_secs_f64())],
        )?;
        families.gauges(
            "process_resident_memory",
            Some(Unit::Bytes),
            "Memory of the agent, without the maps' and the programs', which are the kernel's.",
            [(NONE, process.resident_bytes)],
        )?;
        families.gauge(
            "process_open_fds",
            "Files that the agent has open.",
            process.open_fds,
        )
    }

    fn wanted(&self, families: &mut Families) -> Result<(), Error> {
        let status = &self.status;
        let uplinks = &status.uplinks;
        families.infos(
            "netfw_uplink",
            "How the programs are attached to an uplink: hook is tcx, clsact or none, xdp is native, generic or none.",
            uplinks.iter().map(|uplink| {
                let or_none =
                    |word: &Option<String>| word.clone().unwrap_or_else(|| "none".to_owned());
                vec![
                    ("uplink", uplink.name.clone()),
                    ("hook", or_none(&uplink.hook)),
                    ("xdp", or_none(&uplink.xdp)),
                ]
            }),
        )?;
        families.gauges(
            "netfw_uplink_served",
            None,
            "Do publishes and masquerade work through the uplink? 1 or 0.",
            uplinks.iter().map(|uplink| {
                (
                    vec![("uplink", uplink.name.clone())],
                    u32::from(uplink.served),
                )
            }),
        )?;
        let up = status.endpoints - status.endpoints_gone;
        families.gauges(
            "netfw_endpoints",
            None,
            "Endpoints, by state.",
            [("up", up), ("gone", status.endpoints_gone)]
                .map(|(state, count)| (vec![("state", state.to_owned())], count)),
        )?;
        families.gauges(
            "netfw_network_endpoints",
            None,
            "Endpoints of a network.",
            status.networks.iter().map(|network| {
                (
                    vec![("network", network.name.to_string())],
                    network.endpoints,
                )
            }),
        )?;
        families.gauge("netfw_publishes", "Publishes.", status.publishes)?;
        let tables = || status.tables.iter();
        let label = |name: &str| vec![("table", name.to_owned())];
        families.gauges(
            "netfw_table_entries",
            None,
            "Entries of a table, an estimate where there are many; flows and embryos count once.",
            tables().map(|table| (label(&table.name), table.used)),
        )?;
        families.gauges(
            "netfw_table_max_entries",
            None,
            "Room of a table.",
            tables().map(|table| (label(&table.name), table.max)),
        )
    }

    fn traffic(&self, families: &mut Families) -> Result<(), Error> {
        let rows = self.rows();
        let each = |of: fn(&Counter) -> u64| {
            rows.iter().map(move |row| {
                let labels = vec![
                    ("endpoint", row.endpoint.clone()),
                    ("publish", row.publish.clone()),
                ];
                (labels, of(&row.counter))
            })
        };
        families.counters(
            "netfw_endpoint_receive_packets",
            None,
            "Packets into the container, by the publish that their flow came by; of none, where that is empty.",
            each(|c| c.rx_packets),
        )?;
        families.counters(
            "netfw_endpoint_receive",
            Some(Unit::Bytes),
            "The same in bytes of IP.",
            each(|c| c.rx_bytes),
        )?;
        families.counters(
            "netfw_endpoint_transmit_packets",
            None,
            "Packets out of the container, likewise.",
            each(|c| c.tx_packets),
        )?;
        families.counters(
            "netfw_endpoint_transmit",
            Some(Unit::Bytes),
            "The same in bytes of IP.",
            each(|c| c.tx_bytes),
        )?;
        families.gauge(
            "netfw_counters_left_out",
            "Endpoints and publishes without counters here, since there are more than metrics_rows.",
            self.left_out,
        )?;
        families.counters(
            "netfw_dropped_packets",
            None,
            "Packets dropped, by reason.",
            self.stats
                .drops
                .iter()
                .map(|drop| (vec![("reason", drop.reason.clone())], drop.packets)),
        )
    }

    /// Runs and their time stay 0 unless the kernel counts them (`kernel.bpf_stats_enabled`).
    fn programs(&self, families: &mut Families) -> Result<(), Error> {
        let programs = || self.status.programs.iter();
        let label = |name: &str| vec![("program", name.to_owned())];
        families.counters(
            "netfw_program_runs",
            None,
            "Runs of a program, while kernel.bpf_stats_enabled is 1.",
            programs().map(|program| (label(&program.name), program.runs)),
        )?;
        families.counters(
            "netfw_program_run",
            Some(Unit::Seconds),
            "Time of these runs.",
            programs().map(|program| {
                let time = std::time::Duration::from_nanos(program.run_time_ns);
                (label(&program.name), time.as_secs_f64())
            }),
        )?;
        families.gauges(
            "netfw_program_verified_instructions",
            None,
            "Instructions that the kernel's verifier went through.",
            programs()
                .filter_map(|program| Some((label(&program.name), program.verified_instructions?))),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        api::types::{self, DropStats, EndpointStats, PublishStats, Table, Uplink},
        metrics::{Answered, Repair},
        publish::Spec,
        source::Sources,
    };

    fn counter(n: u64) -> Counter {
        Counter {
            rx_packets: n,
            rx_bytes: n * 100,
            tx_packets: n * 2,
            tx_bytes: n * 200,
        }
    }

    fn publish(text: &str, n: u64) -> PublishStats {
        let spec: Spec = text.parse().unwrap();
        let ports = spec.host_ports.unwrap();
        let publish = spec.resolve(spec.host_ip.unwrap(), ports);
        PublishStats {
            publish: types::Publish::new(publish, Sources::default()),
            counter: counter(n),
        }
    }

    pub fn page() -> Page {
        let endpoint = |name: &str, n, publishes| EndpointStats {
            name: name.parse().unwrap(),
            total: counter(n),
            publishes,
        };
        let stats = Stats {
            endpoints: vec![
                endpoint(
                    "web",
                    10,
                    vec![publish("0.0.0.0:80:80", 3), publish("[::]:80:80", 4)],
                ),
                endpoint("db", 5, Vec::new()),
            ],
            drops: vec![DropStats {
                reason: "leak".into(),
                description: String::new(),
                packets: 7,
                senders: Vec::new(),
            }],
        };
        let status = Status {
            version: "1.2.3".into(),
            instance: "netfw".parse().unwrap(),
            pid: 1,
            netns: None,
            uptime: 1,
            uplinks: vec![Uplink {
                name: "eth\"0".into(),
                ifindex: Some(2),
                hook: Some("tcx".into()),
                served: true,
                error: None,
                xdp: None,
                xdp_why: None,
            }],
            networks: Vec::new(),
            endpoints: 2,
            endpoints_gone: 1,
            publishes: 2,
            published_ports: 2,
            flows: 0,
            flows_max: 0,
            tables: vec![Table {
                name: "flows4".into(),
                used: 3,
                max: 8,
            }],
            ipv6_missing: None,
            warnings: Vec::new(),
            dropped: 7,
            drops: Vec::new(),
            programs: Vec::new(),
        };
        Page {
            status,
            stats,
            process: Process::default(),
            left_out: 0,
        }
    }

    fn lines(page: Page, events: &Events) -> Vec<String> {
        page.text(events).lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_page_tells_it_all() {
        let events = Events::default();
        events.repaired(Repair::Filter);
        events.answers.count(Answered::Failed);
        events.requested("GET", 200);
        let lines = lines(page(), &events);
        for line in [
            "# TYPE netfw_build info",
            "netfw_endpoint_receive_packets_total{endpoint=\"web\",publish=\"\"} 3",
            "netfw_endpoint_receive_packets_total{endpoint=\"web\",publish=\"0.0.0.0:80:80/tcp\"} 3",
            "# UNIT netfw_endpoint_transmit_bytes bytes",
            "netfw_endpoint_transmit_bytes_total{endpoint=\"web\",publish=\"[::]:80:80/tcp\"} 800",
            "netfw_endpoint_receive_packets_total{endpoint=\"db\",publish=\"\"} 5",
            "netfw_dropped_packets_total{reason=\"leak\"} 7",
            "netfw_uplink_info{uplink=\"eth\\\"0\",hook=\"tcx\",xdp=\"none\"} 1",
            "netfw_endpoints{state=\"up\"} 1",
            "netfw_table_entries{table=\"flows4\"} 3",
            "netfw_table_max_entries{table=\"flows4\"} 8",
            "netfw_repairs_total{what=\"filter\"} 1",
            "netfw_repairs_total{what=\"bridge\"} 0",
            "netfw_dns_queries_total{result=\"failed\"} 1",
            "netfw_dns_queries_total{result=\"known\"} 0",
            "netfw_api_requests_total{method=\"GET\",code=\"200\"} 1",
            "netfw_counters_left_out 0",
            "# HELP netfw_publishes Publishes.",
        ] {
            assert!(lines.iter().any(|l| l == line), "{line}\n{lines:#?}");
        }
        assert_eq!(lines.last().unwrap(), "# EOF");
    }

    #[test]
    fn the_documentation_lists_all_and_no_other() {
        let listed: BTreeSet<&str> = include_str!("../../../docs/metrics.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .flat_map(|line| {
                line.split('|')
                    .next()
                    .unwrap_or_default()
                    .split('`')
                    .step_by(2)
            })
            .filter(|name| name.starts_with("netfw_") || name.starts_with("process_"))
            .collect();
        let text = {
            let events = Events::default();
            events.requested("GET", 200);
            page().text(&events)
        };
        let there: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        assert_eq!(listed, there);
    }

    #[test]
    fn endpoints_go_first() {
        let rows = page().rows().into_iter();
        let names: Vec<_> = rows.map(|row| (row.endpoint, row.publish)).collect();
        let expected = [
            ("web", ""),
            ("db", ""),
            ("web", "0.0.0.0:80:80/tcp"),
            ("web", "[::]:80:80/tcp"),
        ];
        assert_eq!(names, expected.map(|(e, p)| (e.to_owned(), p.to_owned())));
    }
}
