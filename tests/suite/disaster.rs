//! Cold start and disaster: who may lead after everything stopped, what happens to data that is wiped, put back, copied or
//! damaged, to a register that is gone or older, and the operator's override. Nothing is ever deleted.

use std::path::{Path, PathBuf};
use std::time::Instant;

use replcluster::register::held;
use replcluster::view::NodeId;
use serde_json::Value;

use super::cli::Scene;
use super::cluster::{Cluster, PATIENCE, get, put_request};

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_directory(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Puts a copy taken earlier in the place of a directory, which is kept beside it.
fn put_back(copy: &Path, place: &Path) -> PathBuf {
    let newer = place.with_extension("newer");
    std::fs::rename(place, &newer).unwrap();
    copy_directory(copy, place);
    newer
}

/// Every file with its content, but for what a node that refuses to start may write: its name into its lock, and the
/// recovery of a state that was not closed.
fn contents(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.file_name().unwrap() != "lock" && path.file_name().unwrap() != "state.redb" {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// Starts a node that ends by itself; its exit code and what it said.
fn ends(cluster: &Cluster, address: &str) -> (i32, String) {
    let output = cluster.command(address, &cluster.nodes[address].data).output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// As [`ends`], again and again as a supervisor does, until it says this.
fn ends_saying(cluster: &Cluster, address: &str, expected: &str) -> String {
    let start = Instant::now();
    loop {
        let (code, text) = ends(cluster, address);
        assert_eq!(code, 1, "{text}");
        if text.contains(expected) {
            return text;
        }
        assert!(start.elapsed() < PATIENCE, "{address} never says {expected}: {text}");
    }
}

/// Waits until the register has been told of everything that this node holds.
async fn noted(cluster: &Cluster, address: &str) {
    let node = NodeId::parse(address).unwrap();
    let commit = cluster.describe(address).await.unwrap().commit_index;
    let start = Instant::now();
    while held::read(&cluster.register(), &node).is_none_or(|held| held.commit.0 < commit) {
        assert!(start.elapsed() < PATIENCE, "{address} never notes what it holds");
        tokio::task::yield_now().await;
    }
}

async fn puts(cluster: &Cluster, address: &str, prefix: &str) {
    let client = cluster.client(&[address.to_owned()]);
    for number in 0..10 {
        client.put(put_request(&format!("{prefix}{number}"), "v")).await.unwrap();
    }
}

async fn has(cluster: &Cluster, address: &str, key: &str) -> bool {
    get(&cluster.client(&[address.to_owned()]), key).await.is_some()
}

fn kill(cluster: &mut Cluster, address: &str) {
    cluster.nodes.get_mut(address).unwrap().kill();
}

/// Turns a bit in the middle of the log, with valid records after it.
fn damage_log(data: &Path, text: &[u8]) {
    for entry in std::fs::read_dir(data.join("log")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(text.len()).position(|window| window == text) {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            return;
        }
    }
    panic!("nothing to damage in {}", data.display());
}

// --- T5: an old backup ---

#[tokio::test(flavor = "multi_thread")]
async fn an_old_backup_put_into_a_follower_of_a_living_cluster_is_caught_up() {
    let mut cluster = Cluster::start(2).await;
    let addresses = cluster.addresses();
    puts(&cluster, &addresses[0], "a").await;
    kill(&mut cluster, &addresses[1]);
    let data = cluster.nodes[&addresses[1]].data.clone();
    let backup = cluster.directory.path().join("backup");
    copy_directory(&data, &backup);
    cluster.spawn(&addresses[1]);
    cluster.wait_in_sync().await;
    puts(&cluster, &addresses[0], "b").await;
    kill(&mut cluster, &addresses[1]);
    cluster.wait_in_sync().await;
    put_back(&backup, &data);
    cluster.spawn(&addresses[1]);
    cluster.wait_in_sync().await;
    assert!(has(&cluster, &addresses[1], "b9").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_backup_put_into_the_next_leader_does_not_lead_and_loses_nothing() {
    let mut cluster = Cluster::start(2).await;
    let addresses = cluster.addresses();
    puts(&cluster, &addresses[0], "a").await;
    let data = cluster.nodes[&addresses[0]].data.clone();
    let backup = cluster.directory.path().join("backup");
    // Taken while it runs and idles, in the very view that is current when it is put back: no epoch betrays it.
    copy_directory(&data, &backup);
    puts(&cluster, &addresses[0], "b").await;
    noted(&cluster, &addresses[0]).await;
    for process in cluster.nodes.values() {
        process.freeze(); // so that none sees the other die: both stay counted on
    }
    for address in &addresses {
        kill(&mut cluster, address);
    }
    put_back(&backup, &data);
    let (code, text) = ends(&cluster, &addresses[0]);
    assert!(code == 1 && text.contains("restored from an older copy"), "{code} {text}");
    assert!(text.contains("counts on this copy"), "{text}");
    cluster.spawn(&addresses[1]);
    cluster.wait_in_sync().await;
    cluster.spawn(&addresses[0]);
    cluster.wait_in_sync().await;
    assert!(has(&cluster, &addresses[0], "b9").await, "nothing was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_backup_put_into_the_only_copy_is_refused_until_the_newer_data_is_back() {
    let mut cluster = Cluster::start(1).await;
    let address = cluster.addresses()[0].clone();
    puts(&cluster, &address, "a").await;
    let data = cluster.nodes[&address].data.clone();
    let backup = cluster.directory.path().join("backup");
    copy_directory(&data, &backup);
    puts(&cluster, &address, "b").await;
    noted(&cluster, &address).await;
    kill(&mut cluster, &address);
    let newer = put_back(&backup, &data);
    let before = contents(&data);
    let (code, text) = ends(&cluster, &address);
    assert!(code == 1 && text.contains("it is the only in-sync copy"), "{code} {text}");
    assert!(text.trim_end().ends_with("`replcluster recover`"), "{text}");
    assert_eq!(contents(&data), before, "a refusal changes nothing");
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(newer, &data).unwrap();
    cluster.spawn(&address);
    cluster.wait_in_sync().await;
    assert!(has(&cluster, &address, "b9").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_from_before_a_wipe_is_set_aside_once_somebody_leads() {
    let mut cluster = Cluster::start(2).await;
    let addresses = cluster.addresses();
    puts(&cluster, &addresses[0], "a").await;
    kill(&mut cluster, &addresses[1]);
    let data = cluster.nodes[&addresses[1]].data.clone();
    let first = data.with_extension("first");
    std::fs::rename(&data, &first).unwrap();
    cluster.wait_in_sync().await;
    cluster.spawn(&addresses[1]);
    cluster.wait_in_sync().await;
    kill(&mut cluster, &addresses[1]);
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&first, &data).unwrap();
    kill(&mut cluster, &addresses[0]);
    let text = ends_saying(&cluster, &addresses[1], "older copy");
    assert!(text.contains(&format!("start {}", addresses[0])), "nobody leads: {text}");
    assert!(!data.join("aside-1").exists());
    cluster.spawn(&addresses[0]);
    let text = ends_saying(&cluster, &addresses[1], "set aside in");
    assert!(text.contains("aside-1") && data.join("aside-1/state.redb").exists(), "{text}");
    cluster.spawn(&addresses[1]);
    cluster.wait_in_sync().await;
    assert!(has(&cluster, &addresses[1], "a9").await);
}

// --- R23: damage ---

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_kept_while_it_is_counted_on_and_repaired_from_a_peer_after_that() {
    let mut cluster = Cluster::start_with(2, &["--handback-after", "never"]).await;
    let addresses = cluster.addresses();
    puts(&cluster, &addresses[0], "found-again").await;
    for process in cluster.nodes.values() {
        process.freeze(); // so that none sees the other die
    }
    for address in &addresses {
        kill(&mut cluster, address);
    }
    let data = cluster.nodes[&addresses[0]].data.clone();
    damage_log(&data, b"found-again4");
    let before = contents(&data);
    let (code, text) = ends(&cluster, &addresses[0]);
    assert!(code == 1 && text.contains("damaged") && text.contains("counts on this copy"), "{code} {text}");
    assert_eq!(contents(&data), before, "the other may be damaged as well");
    cluster.spawn(&addresses[1]);
    cluster.wait_in_sync().await;
    let text = ends_saying(&cluster, &addresses[0], "set aside in");
    assert!(text.contains(&addresses[1]), "{text}");
    assert!(data.join("aside-1/log").is_dir());
    cluster.spawn(&addresses[0]);
    cluster.wait_in_sync().await;
    assert!(has(&cluster, &addresses[0], "found-again9").await);
}

// --- T6, T7: the same node twice ---

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_directory_and_another_spelling_of_an_address_are_refused() {
    let cluster = Cluster::start(1).await;
    let address = cluster.addresses()[0].clone();
    puts(&cluster, &address, "a").await;
    let copy = cluster.directory.path().join("copy");
    copy_directory(&cluster.nodes[&address].data, &copy);
    let pid = cluster.nodes[&address].pid().to_string();
    let refused = |address: &str, data: &Path| {
        let output = cluster.command(address, data).output().unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = refused(&address, &copy);
    assert!(code == 5 && text.contains(&pid), "the same address: {code} {text}");
    let other = format!("127.0.0.1:{}", super::cluster::free_port());
    let (code, text) = refused(&other, &copy);
    assert!(code == 5 && text.contains(&address), "another address: {code} {text}");
    let spelt = address.replace("127.0.0.1", "localhost");
    let (code, text) = refused(&spelt, &cluster.directory.path().join("spelt"));
    assert!(code == 5 && text.contains(&pid), "another spelling: {code} {text}");
    assert!(has(&cluster, &address, "a9").await);
}

// --- min_in_sync ---

#[tokio::test(flavor = "multi_thread")]
async fn writes_below_min_in_sync_are_refused_and_one_that_ends_up_below_is_not_acknowledged() {
    let mut cluster = Cluster::start_with(2, &["--min-in-sync", "2", "--handback-after", "never"]).await;
    let addresses = cluster.addresses();
    let client = cluster.client(&addresses[..1]);
    client.put(put_request("before", "2")).await.unwrap();
    cluster.nodes[&addresses[1]].freeze();
    // Ordered while both are counted on; committed when the silent one has been dropped.
    let error = client.put(put_request("between", "?")).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("min_in_sync is 2, and the nodes in sync that hold it are 1"), "{text}");
    let refused = client.put(put_request("after", "1")).await.unwrap_err();
    let status = refused.status().expect("an answer of the server");
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().contains("need 2 nodes in sync, and 1 are"), "{status:?}");
    assert_eq!(get(&client, "before").await.as_deref(), Some("2"), "reads go on");
    assert_eq!(get(&client, "between").await.as_deref(), Some("?"), "it was done, and said so");
    assert_eq!(get(&client, "after").await, None);
    cluster.nodes[&addresses[1]].thaw();
    cluster.wait_in_sync().await;
    client.put(put_request("after", "2")).await.unwrap();
    kill(&mut cluster, &addresses[1]);
}

// --- T2, T3: cold start, and recover ---

fn recover_json(scene: &Scene) -> Value {
    let output = scene.run(&["recover", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn data(scene: &Scene, node: usize) -> PathBuf {
    scene.path(&format!(".replcluster/nodes/{}/data", scene.address(node).replace(':', "_")))
}

/// Three nodes; the first dies, `second` is written, the second dies, `third` is written, the third dies.
fn one_after_the_other() -> Scene {
    let scene = Scene::new(3);
    scene.done(&["up"]);
    for (node, key) in [(0, "first"), (1, "second"), (2, "third")] {
        scene.done(&["client", "put", key, "here"]);
        // What it holds is noted in the register a moment later.
        let applied = scene.status()["nodes"][node]["applied"].as_u64().unwrap();
        let address = NodeId::parse(&scene.address(node)).unwrap();
        let register = scene.path(".replcluster/register");
        while held::read(&register, &address).is_none_or(|held| held.commit.0 < applied) {}
        scene.done(&["kill", "--no-probe", "--yes", &scene.address(node)]);
    }
    scene
}

#[test]
fn only_the_last_in_sync_node_may_lead_and_everybody_says_so() {
    let scene = one_after_the_other();
    let (code, text) = scene.said(&["start", &scene.address(0), "--timeout", "1s"]);
    let last = scene.address(2);
    assert_eq!(code, 4, "{text}");
    for expected in [
        format!("waiting for {last}: it was the only one in sync"),
        format!("replcluster start {last}"),
        "replcluster recover".to_owned(),
    ] {
        assert!(text.contains(&expected), "{expected}: {text}");
    }
    let (code, text) = scene.said(&["status"]);
    assert!(code == 9 && text.contains(&format!("waiting for {last}")), "{code} {text}");
    let status = scene.status();
    assert!(status["nodes"][0]["waiting_for"].as_str().unwrap().contains(&last), "{status}");
    let (code, text) = scene.said(&["recover"]);
    assert!(code == 9 && text.contains("nothing is lost"), "{code} {text}");
    assert_eq!(recover_json(&scene)["verdict"], "start");
    let (code, text) = scene.said(&["recover", "--accept-data-loss", "--yes"]);
    assert!(code == 1 && text.contains("no data was given up"), "{code} {text}");
    scene.done(&["up"]);
    for key in ["first", "second", "third"] {
        assert!(scene.done(&["client", "get", key]).contains("here"), "{key}");
    }
    let (code, text) = scene.said(&["recover"]);
    assert!(code == 0 && text.contains("nothing is to be recovered"), "{code} {text}");
    let log = std::fs::read_to_string(
        scene.path(&format!(".replcluster/nodes/{}/log", scene.address(0).replace(':', "_"))),
    );
    let said = log.unwrap().matches("waiting for one of the last in-sync nodes").count();
    assert!(said <= 1, "said {said} times");
}

#[test]
fn with_the_last_copy_wiped_the_override_goes_on_from_the_best_one_and_keeps_the_others() {
    let scene = one_after_the_other();
    std::fs::remove_dir_all(data(&scene, 2)).unwrap();
    let (code, text) = scene.said(&["up", "--timeout", "1s"]);
    let (best, lost) = (scene.address(1), scene.address(2));
    assert_eq!(code, 4, "{text}");
    assert!(text.contains(&format!("{lost} runs, but with another data directory")), "{text}");
    let told = recover_json(&scene);
    assert_eq!((&told["verdict"], &told["nodes"][0]), (&Value::from("recover"), &Value::from(best.as_str())));
    let loss = told["loss"].to_string();
    assert!(loss.contains("were committed and are not there") && loss.contains("may be gone"), "{told}");
    let (code, text) = scene.said(&["recover", "--accept-data-loss"]);
    assert!(code == 2 && text.contains("--yes"), "{code} {text}");
    assert_eq!(scene.status()["nodes"][0]["state"], "syncing", "nothing was ended yet");
    scene.done(&["recover", "--accept-data-loss", "--yes"]);
    let told = recover_json(&scene);
    assert_eq!((&told["verdict"], &told["nodes"][0]), (&Value::from("start"), &Value::from(best.as_str())));
    scene.done(&["up"]);
    for (key, there) in [("first", true), ("second", true), ("third", false)] {
        assert_eq!(scene.done(&["client", "get", key]).contains("here"), there, "{key}");
    }
    assert!(data(&scene, 0).join("aside-1/state.redb").exists(), "kept, not deleted");
    assert!(!data(&scene, 1).join("aside-1").exists(), "the source goes on as it is");
    let (code, text) = scene.said(&["recover"]);
    assert!(code == 0 && text.contains("set aside in"), "{code} {text}");
    assert!(scene.done(&["events"]).contains(&format!("recover --accept-data-loss --source {best}")));
}

#[test]
fn the_operator_may_choose_another_source_than_the_recommended_one() {
    let scene = one_after_the_other();
    std::fs::remove_dir_all(data(&scene, 2)).unwrap();
    let (code, text) = scene.said(&["recover", "--accept-data-loss", "--yes", "--source", &scene.address(2)]);
    assert!(code == 1 && text.contains("holds no data"), "{code} {text}");
    scene.done(&["recover", "--accept-data-loss", "--yes", "--source", &scene.address(0)]);
    scene.done(&["up"]);
    // What the other one knew to be committed is more than the source holds: it goes aside all the same.
    assert!(scene.done(&["client", "get", "first"]).contains("here"));
    assert!(!scene.done(&["client", "get", "second"]).contains("here"));
    assert!(data(&scene, 1).join("aside-1/state.redb").exists());
}

/// What stands under a heading of the README as commands and what they print.
fn commands_under(heading: &str) -> Vec<(String, Vec<String>)> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let section = readme.split(&format!("## {heading}\n")).nth(1).unwrap_or_else(|| panic!("no {heading}"));
    super::readme::tour(section)
}

#[test]
fn the_readme_shows_what_a_recovery_prints() {
    let scene = one_after_the_other();
    std::fs::remove_dir_all(data(&scene, 2)).unwrap();
    let mut compared = 0;
    for (command, printed) in commands_under("When the last copy is gone") {
        let words: Vec<&str> = command.split(' ').skip(1).collect();
        let (code, text) = scene.said(&words);
        assert!(code == 0 || (words == ["recover"] && code == 9), "{command}: {code} {text}");
        if printed.is_empty() {
            continue;
        }
        let here = |line: &String| {
            let line = (0..3).fold(line.clone(), |line, node| {
                line.replace(&format!("127.0.0.1:{}", 2379 + node), &scene.address(node))
            });
            super::readme::shape(&line)
        };
        let expected: Vec<String> = printed.iter().map(here).collect();
        let found: Vec<String> = text.lines().map(super::readme::shape).collect();
        assert_eq!(found, expected, "{command} prints:\n{text}");
        compared += 1;
    }
    assert!(compared >= 2, "the section shows what its commands print");
    assert!(scene.done(&["client", "get", "second"]).contains("here"));
}

// --- T11: the register ---

#[test]
fn a_register_that_is_gone_older_or_garbage_is_made_anew_without_losing_a_write() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    scene.done(&["client", "put", "kept", "through it all"]);
    let register = scene.path(".replcluster/register");
    let views = || -> Vec<PathBuf> {
        let mut views: Vec<PathBuf> = std::fs::read_dir(&register)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("view-"))
            .collect();
        views.sort();
        views
    };
    for what in ["deleted", "restored", "older", "garbage"] {
        let backup = scene.path(&format!("register-{what}"));
        copy_directory(&register, &backup);
        scene.done(&["down"]);
        match what {
            // The whole of it, from before the last view: only the nodes' own data betrays it.
            "restored" => drop(put_back(&backup, &register)),
            "deleted" => super::cluster::delete(&register),
            "older" => std::fs::remove_file(views().pop().unwrap()).unwrap(),
            _ => std::fs::write(views().pop().unwrap(), "garbage").unwrap(),
        }
        let (code, text) = scene.said(&["up", "--timeout", "1s"]);
        assert!(code != 0 && text.contains("replcluster recover"), "{what}: {code} {text}");
        let told = recover_json(&scene);
        assert_eq!(told["verdict"], "recover", "{what}: {told}");
        assert!(told["loss"].to_string().contains("nothing acknowledged is known to be missing"), "{told}");
        scene.done(&["recover", "--accept-data-loss", "--yes"]);
        scene.done(&["up"]);
        assert!(scene.done(&["client", "get", "kept"]).contains("through it all"), "{what}");
    }
}

#[test]
fn a_register_that_vanishes_under_a_running_cluster_is_noticed() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    super::cluster::delete(&scene.path(".replcluster/register"));
    let (code, text) = scene.said(&["recover"]);
    assert!(code == 8 && text.contains("the register is gone"), "{code} {text}");
    scene.done(&["recover", "--accept-data-loss", "--yes"]);
    scene.done(&["up"]);
}

// --- inspect ---

#[test]
fn inspect_shows_a_stopped_directory_changes_nothing_and_refuses_one_in_use() {
    let scene = Scene::new(1);
    scene.done(&["up"]);
    scene.done(&["client", "put", "key", "value"]);
    let place = data(&scene, 0);
    let inspect = |flags: &[&str]| {
        let mut command = std::process::Command::new(super::cluster::replserver());
        command.arg("inspect").arg("--data-dir").arg(&place).args(flags).output().unwrap()
    };
    let refused = inspect(&[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(5) && said.contains("in use by pid"), "{said}");
    scene.done(&["kill", "--no-probe", "--yes", "leader"]);
    let before = contents(&place);
    let text = String::from_utf8(inspect(&[]).stdout).unwrap();
    for expected in [&scene.address(0), "revision", "which prove nothing", "usable       yes"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let found: Value = serde_json::from_slice(&inspect(&["--json"]).stdout).unwrap();
    assert!(found["usable"] == true && found["log"]["last"]["index"].as_u64() > Some(0), "{found}");
    assert_eq!(contents(&place), before);
    std::fs::write(place.join("promise"), "x").unwrap();
    let found: Value = serde_json::from_slice(&inspect(&["--json"]).stdout).unwrap();
    assert!(found["usable"] == false && found["damage"][0].as_str().unwrap().contains("promise"), "{found}");
}
