//! What dockerd asks a driver, and what it is told: the requests are those of dockerd 20.10, and these tests
//! play it.

use std::{fs, net::IpAddr, os::unix::fs::MetadataExt};

use netfw_tests::{
    Lab, Namespace,
    programs::{Nginx, curl, curl_in_vain, ping},
    topology::{CLIENT, NODE, NODE6, WORLD},
    wait::wait_until,
};
use serde_json::{Value, json};

use super::player::{
    BAD, CONFLICT, Dockerd, ENDPOINT, NETWORK, OK, OTHER, Player, SANDBOX, SECOND, binding, socket,
};
use crate::setting::{SOON, text};

#[test]
fn who_the_driver_is() {
    let player = Player::new();
    let (status, answer) = player.post("Plugin.Activate", "");
    assert_eq!(status, OK);
    assert_eq!(
        answer,
        json!({"Implements": ["NetworkDriver", "IpamDriver"]})
    );
    assert_eq!(
        player.ask("NetworkDriver.GetCapabilities", json!({})),
        json!({"Scope": "local", "ConnectivityScope": "local"})
    );
    assert_eq!(
        player.ask("IpamDriver.GetCapabilities", json!({})),
        json!({"RequiresMACAddress": false, "RequiresRequestReplay": false})
    );
    assert_eq!(
        player.ask("IpamDriver.GetDefaultAddressSpaces", json!({})),
        json!({"LocalDefaultAddressSpace": "netfw", "GlobalDefaultAddressSpace": "netfw"})
    );
    let file = fs::metadata(socket(&player.agent)).expect("a socket");
    assert_eq!((file.mode() & 0o777, file.uid()), (0o600, 0));
    // What it does without, dockerd does without, too.
    assert_eq!(player.post("NetworkDriver.AllocateNetwork", "{}").0, 404);
}

#[test]
fn a_container_s_whole_life() {
    let player = Player::new();
    let before = player.lab.node.links();
    player.ask(
        "NetworkDriver.CreateNetwork",
        json!({
            "NetworkID": NETWORK,
            "Options": {"com.docker.network.enable_ipv6": true, "com.docker.network.generic": {"name": "app"}},
            "IPv4Data": [{"AddressSpace": "LocalDefault", "Gateway": "10.99.0.1/24", "Pool": "10.99.0.0/24"}],
            "IPv6Data": [{"AddressSpace": "LocalDefault", "Gateway": "fd99::1/64", "Pool": "fd99::/64"}],
        }),
    );
    let created = player.ask(
        "NetworkDriver.CreateEndpoint",
        json!({
            "NetworkID": NETWORK, "EndpointID": ENDPOINT,
            "Interface": {"Address": "10.99.0.77/24", "AddressIPv6": "fd99::77/64", "MacAddress": ""},
            "Options": null,
        }),
    );
    let mac = text(&created["Interface"]["MacAddress"]);
    assert!(mac.starts_with("02:6e:"), "{created}");
    let joined = player.ask("NetworkDriver.Join", player.joining(NETWORK, ENDPOINT));
    let source = text(&joined["InterfaceName"]["SrcName"]).to_owned();
    let expected = json!({
        "InterfaceName": {"SrcName": source, "DstPrefix": "eth"},
        "Gateway": "10.99.0.1", "GatewayIPv6": "fd99::1", "DisableGatewayService": true,
    });
    assert_eq!(joined, expected);
    // Until it is taken it is nothing to anybody: no uplink, and no endpoint that is gone.
    let status = player.agent.json(&["status"]);
    let uplinks = status["uplinks"].as_array().expect("a list");
    assert!(
        uplinks.iter().all(|uplink| uplink["name"] != *source),
        "{status}"
    );
    let ports = json!([binding(6, 8080, 80), binding(6, 0, 81)]);
    player.publish(NETWORK, ENDPOINT, ports);
    assert_eq!(
        player.ask(
            "NetworkDriver.EndpointOperInfo",
            json!({"NetworkID": NETWORK, "EndpointID": ENDPOINT})
        ),
        json!({"Value": {}})
    );

    let container = player.lab.container("web");
    player.take(&joined, "10.99.0.77/24", &container, "eth0");
    container.ip(&["address", "add", "fd99::77/64", "dev", "eth0", "nodad"]);
    container.ip(&["route", "add", "default", "via", "fd99::1"]);
    player.is_adopted(&["eth0"]);
    let nginx = Nginx::start(&container, "web", &[80, 81]);
    for node in [NODE, NODE6] {
        wait_until("the page", SOON, || {
            curl(&player.lab.client, node, 8080, "/") == Some(nginx.page(80))
        });
    }
    wait_until("the client's address in the log", SOON, || {
        let mut log = nginx.log().into_iter();
        log.any(|line| line.starts_with(&CLIENT.to_string()))
    });
    assert!(ping(&container, WORLD));
    let [endpoint] = &player.endpoints()[..] else {
        panic!("one endpoint")
    };
    assert_eq!(endpoint["name"], format!("docker-{SANDBOX}"));
    assert_eq!(endpoint["mac"], mac);
    assert_eq!(
        endpoint["networks"][0]["owner"],
        json!({"docker": {"container": SANDBOX, "network": NETWORK, "endpoint": ENDPOINT}})
    );
    let chosen = endpoint["publishes"].as_array().expect("a list").iter();
    let chosen = chosen.filter(|p| p["container_ports"]["first"] == 81);
    let chosen: Vec<u64> = chosen
        .filter_map(|p| p["host_ports"]["first"].as_u64())
        .collect();
    assert_eq!(chosen, [chosen[0]; 2], "one port in both families");
    let port = chosen[0].try_into().expect("a port");
    assert_eq!(
        curl(&player.lab.client, NODE, port, "/"),
        Some(nginx.page(81))
    );

    player.says("RevokeExternalConnectivity", NETWORK, ENDPOINT);
    assert!(curl_in_vain(&player.lab.client, NODE, 8080));
    assert!(ping(&container, WORLD), "its way out stays");
    // It may leave and join again, and what it has is as before.
    player.says("Leave", NETWORK, ENDPOINT);
    player.put_back(&joined, &container, "eth0");
    let again = player.ask("NetworkDriver.Join", player.joining(NETWORK, ENDPOINT));
    assert_eq!(again, joined);
    player.take(&again, "10.99.0.77/24", &container, "eth0");
    player.is_adopted(&["eth0"]);
    assert!(ping(&container, WORLD));
    player.says("Leave", NETWORK, ENDPOINT);
    player.put_back(&joined, &container, "eth0");
    player.says("DeleteEndpoint", NETWORK, ENDPOINT);
    assert_eq!(player.endpoints(), [Value::Null; 0]);
    assert_eq!(
        player.ask("NetworkDriver.DeleteNetwork", json!({"NetworkID": NETWORK})),
        json!({})
    );
    assert_eq!(player.lab.node.links(), before);
}

#[test]
fn dockerd_or_the_agent_dies_half_way() {
    let mut player = Player::new();
    player.create_network(NETWORK, "10.99.0.0/24", "10.99.0.1/24");
    // It asks again where it heard no answer.
    player.create_network(NETWORK, "10.99.0.0/24", "10.99.0.1/24");
    let before = player.lab.node.links();

    // Before the container has its interface.
    player.create_endpoint(NETWORK, ENDPOINT, "10.99.0.2/24");
    player.says("DeleteEndpoint", NETWORK, ENDPOINT);
    player.join(NETWORK, ENDPOINT, "10.99.0.2/24");
    player.agent.kill();
    player.agent.start_again();
    let [waiting] = &player.endpoints()[..] else {
        panic!("one endpoint")
    };
    assert_eq!(waiting["state"], "up", "it waits for dockerd");
    player.says("DeleteEndpoint", NETWORK, ENDPOINT);
    player.says("DeleteEndpoint", NETWORK, ENDPOINT);
    player.says("Leave", NETWORK, ENDPOINT);
    assert_eq!(player.lab.node.links(), before);

    // dockerd is killed before it has taken the interface: its next start finds port and address free.
    player.join(NETWORK, ENDPOINT, "10.99.0.2/24");
    player.publish(NETWORK, ENDPOINT, json!([binding(6, 8080, 80)]));
    player.restart_dockerd();
    player.join(NETWORK, SECOND, "10.99.0.2/24");
    player.publish(NETWORK, SECOND, json!([binding(6, 8080, 80)]));
    player.says("DeleteEndpoint", NETWORK, SECOND);
    assert_eq!(player.lab.node.links(), before);

    // It did not hear the answer, and asks again.
    player.join(NETWORK, ENDPOINT, "10.99.0.2/24");
    let again = player.join(NETWORK, ENDPOINT, "10.99.0.2/24");
    let container = player.lab.container("web");
    player.take(&again, "10.99.0.2/24", &container, "eth0");
    player.is_adopted(&["eth0"]);
    player.publish(NETWORK, ENDPOINT, json!([binding(6, 8080, 80)]));
    // A container that lives is not lost with its sandbox's name.
    fs::remove_file(player.sandbox()).expect("the link");
    let nginx = Nginx::start(&container, "web", &[80]);
    player.refused("NetworkDriver.DeleteNetwork", json!({"NetworkID": NETWORK}));
    assert_eq!(
        curl(&player.lab.client, NODE, 8080, "/"),
        Some(nginx.page(80))
    );
    // It ends while dockerd is away.
    drop(nginx);
    container.delete();
    wait_until("the interface to be gone", SOON, || {
        player.endpoints()[0]["state"] == "gone"
    });
    let other = player.join(NETWORK, SECOND, "10.99.0.3/24");
    player.publish(NETWORK, SECOND, json!([binding(6, 8080, 80)]));
    let [endpoint] = &player.endpoints()[..] else {
        panic!("one endpoint")
    };
    assert_eq!(endpoint["ip"], "10.99.0.3");
    let container = player.lab.container("other");
    player.take(&other, "10.99.0.3/24", &container, "eth0");
    player.is_adopted(&["eth0"]);
    let nginx = Nginx::start(&container, "other", &[80]);
    assert_eq!(
        curl(&player.lab.client, NODE, 8080, "/"),
        Some(nginx.page(80))
    );

    // The agent was away when dockerd took the interface.
    player.says("DeleteEndpoint", NETWORK, SECOND);
    fs::remove_file(player.sandbox()).expect("the link");
    let joined = player.join(NETWORK, SECOND, "10.99.0.3/24");
    player.publish(NETWORK, SECOND, json!([binding(6, 8080, 80)]));
    player.agent.kill();
    let container = player.lab.container("third");
    player.take(&joined, "10.99.0.3/24", &container, "eth0");
    let nginx = Nginx::start(&container, "third", &[80]);
    assert_eq!(
        curl(&player.lab.client, NODE, 8080, "/"),
        Some(nginx.page(80))
    );
    player.agent.start_again();
    player.is_adopted(&["eth0"]);
    assert_eq!(
        curl(&player.lab.client, NODE, 8080, "/"),
        Some(nginx.page(80))
    );
    // What is undone is made again, with the routes that dockerd sets only once.
    let host = text(&player.endpoints()[0]["host_interface"]).to_owned();
    player.lab.node.ip(&["link", "delete", &host]);
    wait_until("the page", SOON, || {
        curl(&player.lab.client, NODE, 8080, "/") == Some(nginx.page(80))
    });

    // A start of a container of which the agent forgot the first half.
    player.create_endpoint(NETWORK, ENDPOINT, "10.99.0.2/24");
    player.agent.stop();
    assert!(
        !socket(&player.agent).exists(),
        "dockerd sees that nobody is there"
    );
    player.agent.start_again();
    let (status, said) = player.refused("NetworkDriver.Join", player.joining(NETWORK, ENDPOINT));
    assert_eq!(status, CONFLICT);
    assert!(said.contains("Start the container again"), "{said}");
}

#[test]
fn a_container_in_two_networks() {
    let player = Player::new();
    player.create_network(NETWORK, "10.99.0.0/24", "10.99.0.1/24");
    player.create_network(OTHER, "10.98.0.0/24", "10.98.0.1/24");
    // dockerd joins one before the container is there, or all.
    let first = player.join(NETWORK, ENDPOINT, "10.99.0.2/24");
    let second = player.join(OTHER, SECOND, "10.98.0.2/24");
    let container = player.lab.container("web");
    player.take(&first, "10.99.0.2/24", &container, "eth0");
    player.take(&second, "10.98.0.2/24", &container, "eth1");
    player.is_adopted(&["eth0", "eth1"]);
    let nginx = Nginx::start(&container, "web", &[80]);
    let leads_to = |ip: &str| {
        let endpoint = &player.endpoints()[0];
        assert_eq!(text(&endpoint["ip"]), ip);
        assert_eq!(
            curl(&player.lab.client, NODE, 8080, "/"),
            Some(nginx.page(80))
        );
    };
    player.publish(NETWORK, ENDPOINT, json!([binding(6, 8080, 80)]));
    leads_to("10.99.0.2");
    // Newer versions of dockerd may name one for each family.
    player.publish(OTHER, SECOND, json!([binding(6, 8080, 80)]));
    leads_to("10.98.0.2");
    player.says("RevokeExternalConnectivity", OTHER, SECOND);
    leads_to("10.99.0.2");
    // Another way for the container: what Docker has published ends, what a person has goes on.
    let name = format!("docker-{SANDBOX}");
    player.agent.netfw(&["publish", &name, "8085:80"]);
    player.says("RevokeExternalConnectivity", NETWORK, ENDPOINT);
    assert!(curl_in_vain(&player.lab.client, NODE, 8080));
    assert_eq!(
        curl(&player.lab.client, NODE, 8085, "/"),
        Some(nginx.page(80))
    );
    player.publish(OTHER, SECOND, json!([binding(6, 8080, 80)]));
    leads_to("10.98.0.2");
    assert!(
        container
            .ip(&["route", "show", "default"])
            .contains("10.99.0.1"),
        "the default route is dockerd's to set"
    );
    player.says("Leave", NETWORK, ENDPOINT);
    player.put_back(&first, &container, "eth0");
    player.says("DeleteEndpoint", NETWORK, ENDPOINT);
    leads_to_alone(&player, &container);
    assert_eq!(
        curl(&player.lab.client, NODE, 8080, "/"),
        Some(nginx.page(80))
    );
    player.says("DeleteEndpoint", OTHER, SECOND);
    assert_eq!(player.endpoints(), [Value::Null; 0]);
}

/// As dockerd leaves a container that is in its second network alone.
#[track_caller]
fn leads_to_alone(player: &Player, container: &Namespace) {
    let networks = player.endpoints()[0]["networks"].clone();
    assert_eq!(networks.as_array().map(Vec::len), Some(1), "{networks}");
    assert_eq!(container.ip(&["rule", "show", "from", "10.98.0.2"]), "");
    container.ip(&["route", "replace", "default", "via", "10.98.0.1"]);
}

#[test]
fn xdp_sends_to_containers_of_docker_s() {
    let lab = Lab::new();
    // XDP leaves packets without checksums to TC.
    lab.client.run(&["ethtool", "-K", "eth0", "tx", "off"]);
    let player = Player::in_lab(lab, &["--xdp", "native"]);
    player.create_network(NETWORK, "10.99.0.0/24", "10.99.0.1/24");
    let joined = player.join(NETWORK, ENDPOINT, "10.99.0.2/24");
    player.publish(NETWORK, ENDPOINT, json!([binding(6, 8080, 80)]));
    let container = player.lab.container("web");
    player.take(&joined, "10.99.0.2/24", &container, "eth0");
    player.is_adopted(&["eth0"]);
    let nginx = Nginx::start(&container, "web", &[80]);
    let host = text(&player.endpoints()[0]["host_interface"]).to_owned();
    wait_until("XDP to send into the container", SOON, || {
        assert_eq!(
            curl(&player.lab.client, NODE, 8080, "/"),
            Some(nginx.page(80))
        );
        let shown = player.lab.node.run(&["ethtool", "-S", &host]);
        let mut counts = shown
            .lines()
            .filter_map(|line| line.split_once("xdp_xmit: "));
        counts.any(|(_, count)| count.trim() != "0")
    });
}

#[test]
fn what_cannot_be_is_refused() {
    let player = Player::new();
    player.create_network(NETWORK, "10.99.0.0/24", "10.99.0.1/24");
    let before = (
        player.agent.json(&["network", "ls"]),
        player.lab.node.links(),
    );
    for body in ["", "{", "[]", "null", "{}", r#"{"NetworkID": 1}"#] {
        for method in ["CreateNetwork", "CreateEndpoint", "Join"] {
            let (status, answer) = player.post(&format!("NetworkDriver.{method}"), body);
            assert_eq!(status, BAD, "{method} {body:?}: {answer}");
            let said = text(&answer["Err"]);
            assert!(said.contains("cannot be read"), "{said}");
        }
    }
    let network = |more: Value| {
        let mut body = json!({"NetworkID": OTHER, "IPv4Data": [{"Pool": "10.98.0.0/24", "Gateway": "10.98.0.1/24"}]});
        let fields = more.as_object().expect("fields").clone();
        body.as_object_mut().expect("fields").extend(fields);
        body
    };
    let option = |key: &str, value: &str| {
        network(json!({"Options": {"com.docker.network.generic": {key: value}}}))
    };
    for (body, status, says) in [
        (option("icc", "false"), BAD, "knows no option \"icc\""),
        (option("mtu", "1"), BAD, "MTU"),
        (option("name", "bridge"), CONFLICT, "\"bridge\" exists"),
        (
            network(json!({"IPv4Data": [{"Pool": "10.99.0.0/25"}]})),
            CONFLICT,
            "overlaps",
        ),
        (
            network(json!({"IPv4Data": [{"Pool": "10.98.0.0"}]})),
            BAD,
            "is no address",
        ),
        (
            network(json!({"NetworkID": "../../etc"})),
            BAD,
            "none of Docker's",
        ),
    ] {
        let refused = player.refused("NetworkDriver.CreateNetwork", body);
        assert_eq!(refused.0, status, "{refused:?}");
        assert!(refused.1.contains(says), "{refused:?}");
    }
    let endpoint = |network: &str, address: &str| json!({"NetworkID": network, "EndpointID": SECOND, "Interface": {"Address": address}});
    for (body, says) in [
        (endpoint(OTHER, "10.98.0.2/24"), "`docker network rm`"),
        (endpoint(NETWORK, ""), "has given no address"),
        (endpoint(NETWORK, "10.99.0.2"), "is no address"),
    ] {
        let (_, said) = player.refused("NetworkDriver.CreateEndpoint", body);
        assert!(said.contains(says), "{said}");
    }
    // The address is judged when the container joins.
    for (address, says) in [
        ("10.99.0.1/24", "is the gateway"),
        ("10.1.0.2/24", "does not lie in"),
    ] {
        player.create_endpoint(NETWORK, SECOND, address);
        let (_, said) = player.refused("NetworkDriver.Join", player.joining(NETWORK, SECOND));
        assert!(said.contains(says), "{said}");
    }
    player.create_endpoint(NETWORK, SECOND, "10.99.0.2/24");
    let joining = json!({"EndpointID": SECOND, "SandboxKey": "default"});
    let (_, said) = player.refused("NetworkDriver.Join", joining);
    assert!(said.contains("is no sandbox"), "{said}");
    // A dockerd that lives elsewhere has no use for what is made here.
    let elsewhere = Dockerd::start(&player.lab.client, &player.agent);
    let (status, answer) = elsewhere.post("NetworkDriver.CreateNetwork", "{}");
    assert_eq!(status, BAD);
    let said = text(&answer["Err"]);
    assert!(said.contains("another network namespace"), "{said}");
    // Nothing was changed by any of these.
    let after = (
        player.agent.json(&["network", "ls"]),
        player.lab.node.links(),
    );
    assert_eq!(after, before);
    assert_eq!(player.endpoints(), [Value::Null; 0]);

    // A port that is taken: the container does not start, and dockerd takes back what it has done.
    let container = player.lab.container("web");
    player.agent.netfw(&[
        "endpoint",
        "add",
        "web",
        "--netns",
        container.name(),
        "-p",
        "8080:80",
    ]);
    player.join(NETWORK, ENDPOINT, "10.99.0.2/24");
    let ports = json!({
        "EndpointID": ENDPOINT,
        "Options": {"com.docker.network.portmap": [binding(6, 8080, 80)]},
    });
    let (status, said) = player.refused("NetworkDriver.ProgramExternalConnectivity", ports);
    assert_eq!(status, CONFLICT);
    assert!(said.contains("endpoint \"web\" has"), "{said}");
    player.says("DeleteEndpoint", NETWORK, ENDPOINT);
    player.agent.netfw(&["endpoint", "rm", "web"]);
    assert_eq!(player.lab.node.links(), before.1);
    // In use.
    player.join(NETWORK, ENDPOINT, "10.99.0.2/24");
    let (status, said) =
        player.refused("NetworkDriver.DeleteNetwork", json!({"NetworkID": NETWORK}));
    assert_eq!(status, CONFLICT);
    assert!(said.contains(SANDBOX), "{said}");
    player.says("DeleteEndpoint", NETWORK, ENDPOINT);
    player.ask("NetworkDriver.DeleteNetwork", json!({"NetworkID": NETWORK}));
    player.ask("NetworkDriver.DeleteNetwork", json!({"NetworkID": NETWORK}));
}

#[test]
fn subnets_and_addresses() {
    let player = Player::new();
    let pool = |v6: bool, pool: &str| {
        let body =
            json!({"AddressSpace": "netfw", "Pool": pool, "SubPool": "", "Options": {}, "V6": v6});
        let answer = player.ask("IpamDriver.RequestPool", body);
        assert_eq!(answer["Pool"], answer["PoolID"]);
        text(&answer["Pool"]).to_owned()
    };
    let address = |pool: &str, address: &str, gateway: bool| {
        let options = match gateway {
            true => json!({"RequestAddressType": "com.docker.network.gateway"}),
            false => Value::Null,
        };
        json!({"PoolID": pool, "Address": address, "Options": options})
    };
    let request = |body| text(&player.ask("IpamDriver.RequestAddress", body)["Address"]).to_owned();
    // What is promised is promised once.
    let (first, second, six) = (pool(false, ""), pool(false, ""), pool(true, ""));
    assert_ne!(first, second);
    assert!(six.ends_with("/64"), "{six}");
    assert_eq!(pool(false, "10.97.0.0/29"), "10.97.0.0/29");
    let own = "10.97.0.0/29";
    assert_eq!(request(address(own, "10.97.0.6", true)), "10.97.0.6/29");
    let given: Vec<String> = (0..5).map(|_| request(address(own, "", false))).collect();
    let expected = [
        "10.97.0.1/29",
        "10.97.0.2/29",
        "10.97.0.3/29",
        "10.97.0.4/29",
        "10.97.0.5/29",
    ];
    let sorted = {
        let mut all = given.clone();
        all.sort();
        all
    };
    assert_eq!(sorted, expected);
    let (_, said) = player.refused("IpamDriver.RequestAddress", address(own, "", false));
    assert!(
        said.contains("no address of 10.97.0.0/29 is free"),
        "{said}"
    );
    let (_, said) = player.refused(
        "IpamDriver.RequestAddress",
        address(own, "10.97.0.3", false),
    );
    assert!(said.contains("is taken already"), "{said}");
    player.ask(
        "IpamDriver.ReleaseAddress",
        json!({"PoolID": own, "Address": "10.97.0.3"}),
    );
    // Of a network and its containers the agent knows by itself, also after a restart.
    player.create_network(NETWORK, own, "10.97.0.6/29");
    player.join(NETWORK, ENDPOINT, "10.97.0.3/29");
    let mut player = player;
    player.agent.kill();
    player.agent.start_again();
    let body = address(own, "10.97.0.3", false);
    let (_, said) = player.refused("IpamDriver.RequestAddress", body);
    assert!(said.contains("is taken already"), "{said}");
    let (_, said) = player.refused(
        "IpamDriver.RequestAddress",
        address(own, "10.97.0.6", false),
    );
    assert!(said.contains("is the gateway"), "{said}");
    for (method, body, says) in [
        (
            "RequestPool",
            json!({"Pool": "10.96.0.0/24", "SubPool": "10.96.0.128/25"}),
            "--ip-range",
        ),
        ("RequestPool", json!({"Pool": "10.96.0.0"}), "is no address"),
        (
            "RequestAddress",
            address("10.96.0.0/24", "10.97.0.1", false),
            "does not lie in",
        ),
        ("ReleasePool", json!({"PoolID": "10.96"}), "is no address"),
    ] {
        let (status, said) = player.refused(&format!("IpamDriver.{method}"), body);
        assert_eq!(status, BAD);
        assert!(said.contains(says), "{said}");
    }
    player.ask("IpamDriver.ReleasePool", json!({"PoolID": own}));
    player.says("DeleteEndpoint", NETWORK, ENDPOINT);
    let ip: IpAddr = "10.97.0.3".parse().expect("an address");
    assert!(!player.endpoints().iter().any(|e| e["ip"] == ip.to_string()));
}
