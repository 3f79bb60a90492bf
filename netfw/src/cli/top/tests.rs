//! What is drawn, on a terminal of ratatui's that is none.

use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::{Terminal, backend::TestBackend, style::Color};

use super::{
    MOST_FLOWS,
    model::{Key, Sample, Top, View, short, time},
    view::draw,
};
use crate::{
    api::types::{
        Counter, DropStats, EndpointStats, Flow, Publish, PublishStats, Stats, Status, Tuple,
    },
    publish::Spec,
    source::Sources,
};

fn counter(n: u64) -> Counter {
    Counter {
        rx_packets: n,
        rx_bytes: n * 1000,
        tx_packets: n / 2,
        tx_bytes: n * 10,
    }
}

fn endpoint(name: &str, n: u64, publish: &str) -> EndpointStats {
    let spec: Spec = publish.parse().unwrap();
    let publish = spec.resolve(spec.host_ip.unwrap(), spec.host_ports.unwrap());
    EndpointStats {
        name: name.parse().unwrap(),
        total: counter(n),
        publishes: vec![PublishStats {
            publish: Publish::new(publish, Sources::default()),
            counter: counter(n),
        }],
    }
}

/// `seconds` after `from`: what web and db have counted by then, and what was dropped.
fn sample(from: Instant, seconds: u64, web: u64, db: u64, dropped: u64) -> Sample {
    let status: Status = serde_json::from_value(serde_json::json!({
        "version": "0", "instance": "netfw", "pid": 1, "netns": null, "uptime": 3700 + seconds,
        "uplinks": [], "networks": [], "endpoints": 2, "endpoints_gone": 1, "publishes": 2,
        "published_ports": 2, "flows": 3, "flows_max": 262_144, "dropped": dropped, "drops": [],
        "programs": [],
    }))
    .unwrap();
    let drop = |reason: &str, packets| DropStats {
        reason: reason.into(),
        description: format!("What {reason} is."),
        packets,
        senders: Vec::new(),
    };
    Sample {
        at: from + Duration::from_secs(seconds),
        status,
        stats: Stats {
            endpoints: vec![
                endpoint("web", web, "0.0.0.0:8080:80"),
                endpoint("db", db, "0.0.0.0:5432:5432"),
            ],
            drops: vec![drop("leak", dropped), drop("martian", 0)],
        },
        flows: None,
    }
}

/// Two looks, 10 s apart.
fn top() -> (Top, Instant) {
    let from = Instant::now();
    let mut top = Top::new(sample(from, 0, 100, 100, 0), true);
    top.take(sample(from, 10, 200, 45_100, 30));
    (top, from)
}

fn terminal(width: u16, height: u16, top: &Top) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, top)).unwrap();
    terminal
}

fn screen(width: u16, height: u16, top: &Top) -> Vec<String> {
    let terminal = terminal(width, height, top);
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(width));
    rows.map(|row| {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        line.trim_end().to_owned()
    })
    .collect()
}

fn press(top: &mut Top, code: KeyCode) -> bool {
    top.press(Key::of(KeyEvent::new(code, KeyModifiers::NONE)).unwrap())
}

#[test]
fn publishes_by_rate() {
    let (top, _) = top();
    assert_eq!(
        screen(84, 8, &top),
        [
            "netfw netfw   up 1h01m   endpoints 2 (1 gone)   publishes 2   flows 3 of 262k",
            "RX 4.51k pkt/s 4.51M B/s   TX 2.25k pkt/s 45.1k B/s   dropped 3/s (30 in all)",
            " 1 Publishes   2 Endpoints   3 Flows   4 Drops",
            "PUBLISH                ENDPOINT   RX PKT/S    RX B/S\u{25bc}   TX PKT/S     TX B/S",
            "0.0.0.0:5432:5432/tcp  db            4.50k      4.50M      2.25k      45.0k",
            "0.0.0.0:8080:80/tcp    web              10      10.0k          5        100",
            "",
            "q quit   Tab view   s sort   r reverse   p pause   ? help",
        ]
    );
}

/// The first word of each row of the table.
fn names(top: &Top) -> Vec<String> {
    let rows = screen(100, 12, top).into_iter().skip(4);
    let rows = rows.map_while(|row| row.split_whitespace().next().map(str::to_owned));
    rows.collect()
}

#[test]
fn keys_sort_and_turn_round() {
    let (mut top, _) = top();
    press(&mut top, KeyCode::Char('2'));
    assert_eq!(names(&top), ["db", "web"], "by bytes received");
    press(&mut top, KeyCode::Char('r'));
    assert_eq!(names(&top), ["web", "db"]);
    // By the last two columns, and then by the first.
    for _ in 0..3 {
        press(&mut top, KeyCode::Char('s'));
    }
    assert_eq!(names(&top), ["db", "web"], "by name");
    press(&mut top, KeyCode::Char('r'));
    assert_eq!(names(&top), ["web", "db"]);
    // Each view has its own order.
    press(&mut top, KeyCode::Tab);
    press(&mut top, KeyCode::BackTab);
    assert_eq!(names(&top), ["web", "db"]);
    press(&mut top, KeyCode::Left);
    assert_eq!(names(&top)[0], "0.0.0.0:5432:5432/tcp");
}

#[test]
fn keys_scroll_within_what_there_is() {
    let (mut top, _) = top();
    press(&mut top, KeyCode::Down);
    assert_eq!(names(&top), ["0.0.0.0:8080:80/tcp"]);
    for key in [KeyCode::PageDown, KeyCode::End] {
        press(&mut top, key);
        assert_eq!(names(&top), ["0.0.0.0:8080:80/tcp"]);
    }
    for key in [KeyCode::Home, KeyCode::Up, KeyCode::PageUp] {
        press(&mut top, key);
        assert_eq!(names(&top).len(), 2);
    }
}

#[test]
fn a_drop_that_goes_on_stands_out() {
    let (mut top, _) = top();
    press(&mut top, KeyCode::Char('4'));
    let red = |top: &Top| {
        let terminal = terminal(90, 8, top);
        let buffer = terminal.backend().buffer().clone();
        let rows = buffer.content().chunks(90);
        let red: Vec<bool> = rows.map(|row| row[0].fg == Color::Red).collect();
        red
    };
    let lines = screen(90, 8, &top);
    assert_eq!(lines[4], "leak               3         30  What leak is.");
    assert_eq!(
        lines[5],
        "martian            0          0  What martian is."
    );
    assert_eq!((red(&top)[4], red(&top)[5]), (true, false));
    top.coloured = false;
    assert!(!red(&top).contains(&true));
}

#[test]
fn a_pause_keeps_what_is_shown() {
    let (mut top, from) = top();
    let before = screen(90, 8, &top);
    press(&mut top, KeyCode::Char('p'));
    top.take(sample(from, 20, 9000, 9000, 50));
    let paused = screen(90, 8, &top);
    assert!(paused[2].ends_with("paused"), "{paused:#?}");
    assert_eq!((&paused[4..], &paused[..2]), (&before[4..], &before[..2]));
    press(&mut top, KeyCode::Char(' '));
    top.take(sample(from, 30, 9010, 9000, 50));
    // Of the last interval, not of the whole pause.
    assert_eq!(
        screen(90, 8, &top)[1],
        "RX 1 pkt/s 1.00k B/s   TX 1 pkt/s 10 B/s   dropped 0/s (50 in all)"
    );
}

#[test]
fn an_agent_that_goes_away_is_told_of_and_waited_for() {
    let (mut top, from) = top();
    for seconds in [11, 16] {
        top.lose(
            "no agent is running".into(),
            from + Duration::from_secs(seconds),
        );
    }
    let lines = screen(100, 8, &top);
    assert_eq!(
        lines[7],
        "no answer for 5s, these are the last figures: no agent is running"
    );
    assert_eq!(lines[1], "no rates: the agent does not answer");
    // Zeros would be those of a quiet node.
    let words: Vec<&str> = lines[4].split_whitespace().collect();
    assert_eq!(words, ["0.0.0.0:5432:5432/tcp", "db", "-", "-", "-", "-"]);
    // What it counts from now on is not of the time that it was away.
    top.take(sample(from, 1000, 10_000, 10_000, 30));
    let lines = screen(100, 8, &top);
    assert!(lines[7].starts_with("q quit"), "{lines:#?}");
    assert_eq!(lines[1], "rates come with the next look");
    top.take(sample(from, 1001, 10_001, 10_000, 30));
    assert!(screen(100, 8, &top)[1].starts_with("RX 1 pkt/s"));
}

fn flow(port: u16) -> Flow {
    Flow {
        protocol: "tcp".into(),
        state: "established".into(),
        assured: true,
        timeout: 7440,
        original: Tuple {
            src: "10.1.0.2".parse().unwrap(),
            dst: "10.1.0.1".parse().unwrap(),
            sport: port,
            dport: 8080,
        },
        reply: Tuple {
            src: "10.1.0.1".parse().unwrap(),
            dst: "10.1.0.2".parse().unwrap(),
            sport: 8080,
            dport: port,
        },
        origin: "publish".into(),
        endpoint: Some("web".parse().unwrap()),
    }
}

#[test]
fn the_newest_flows_come_first() {
    let (mut top, from) = top();
    assert!(!top.wants_flows());
    press(&mut top, KeyCode::Char('3'));
    assert!(top.wants_flows());
    assert_eq!(screen(100, 8, &top)[3], "asking for the flows");
    let listed = |seconds, ports: &[u16]| Sample {
        flows: Some(ports.iter().map(|port| flow(*port)).collect()),
        ..sample(from, seconds, 0, 0, 0)
    };
    top.take(listed(20, &[1, 2]));
    top.take(listed(25, &[1, 2, 3]));
    top.take(listed(27, &[1, 3, 4]));
    let lines = screen(100, 9, &top);
    let flows: Vec<Vec<&str>> = lines[4..7]
        .iter()
        .map(|line| line.split_whitespace().take(4).collect())
        .collect();
    assert_eq!(
        flows,
        [
            ["0s", "tcp", "established", "10.1.0.2:4"],
            ["2s", "tcp", "established", "10.1.0.2:3"],
            [">0s", "tcp", "established", "10.1.0.2:1"],
        ],
        "{lines:#?}"
    );
    let mut many = sample(from, 30, 0, 0, 0);
    many.status.flows = MOST_FLOWS + 1;
    top.take(many);
    assert!(screen(100, 8, &top)[3].contains("10001 flows are too many"));
}

#[test]
fn help_opens_and_closes_and_quit_quits() {
    let (mut top, _) = top();
    press(&mut top, KeyCode::Char('?'));
    let shown = screen(90, 24, &top).join("\n");
    assert!(shown.contains("sort by the next column"), "{shown}");
    assert!(!press(&mut top, KeyCode::Esc), "it closes the help");
    assert!(!screen(90, 24, &top).join("\n").contains("sort by the next"));
    for key in ['q', 'c'] {
        let event = KeyEvent::new(KeyCode::Char(key), KeyModifiers::CONTROL);
        assert!(top.press(Key::of(event).unwrap()));
    }
}

#[test]
fn any_size_can_be_drawn() {
    let (mut top, _) = top();
    for view in View::ALL {
        top.press(Key::Show(view));
        for help in [true, false] {
            top.help = help;
            for (width, height) in [(1, 1), (3, 2), (20, 5), (40, 10), (500, 200)] {
                terminal(width, height, &top);
            }
        }
    }
}

#[test]
fn numbers_and_times_are_short() {
    let shorts = [0, 999, 1000, 1239, 12_345, 999_999, 1_000_000, u64::MAX].map(short);
    assert_eq!(
        shorts,
        [
            "0", "999", "1.00k", "1.23k", "12.3k", "999k", "1.00M", "18.4E"
        ]
    );
    let times = [0, 59, 60, 3599, 3600, 86_399, 86_400, 90_000].map(time);
    assert_eq!(
        times,
        [
            "0s", "59s", "1m00s", "59m59s", "1h00m", "23h59m", "1d00h", "1d01h"
        ]
    );
}
