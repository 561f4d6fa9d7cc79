//! What lies outside a node and ends it again and again: it is waited for, for as long as it lasts.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::cli::Scene;
use super::cluster::until;

/// After so many failures of its own in a row a node is given up (`control::restart`).
const GIVEN_UP_AFTER: usize = 9;

/// Takes some 30 seconds: the node is tried again after twice the time, each time.
#[test]
fn a_node_whose_port_is_taken_for_long_is_tried_again_until_it_is_free() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    let node = |status: &Value| status["nodes"][1].clone();
    let address = scene.address(1);
    let victim = node(&scene.status())["pid"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(victim).unwrap()), Signal::SIGKILL).unwrap();
    let mut holder = None;
    until("the port", || {
        holder = TcpListener::bind(&address).ok();
        // Its supervisor may have been faster.
        if holder.is_none()
            && let Some(pid) = node(&scene.status())["pid"].as_i64()
        {
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
        }
        holder.is_some()
    });
    let mut events = scene.command(&["events", "--follow", "--json"]);
    let mut events = events.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let refused = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()).filter(|event| {
        event["event"] == "exited" && event["node"] == address.as_str() && event["code"] == 5
    });
    assert_eq!(refused.take(GIVEN_UP_AFTER).count(), GIVEN_UP_AFTER);
    events.kill().unwrap();
    events.wait().unwrap();
    let standing = node(&scene.status());
    assert_ne!(standing["state"], "failed", "{standing}");
    let text = scene.said(&["status"]).1;
    assert!(text.contains("its port is taken"), "{text}");
    drop(holder);
    scene.done(&["up"]);
    assert_eq!(scene.status()["state"], "healthy");
}
