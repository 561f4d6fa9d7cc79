//! What `replserver` refuses, by exit code and words; nothing that was there is lost.

use std::io::Read as _;
use std::net::TcpListener;
use std::process::{Output, Stdio};

use super::cluster::{Cluster, get, put_request, replserver};

/// Runs a node that should refuse to start.
fn refused(cluster: &Cluster, address: &str, data: &std::path::Path) -> (i32, String) {
    let output =
        cluster.command(address, data).stderr(Stdio::piped()).stdout(Stdio::null()).output().unwrap();
    said(&output)
}

fn said(output: &Output) -> (i32, String) {
    (output.status.code().expect("it exits"), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_address_directory_or_port_is_refused_naming_the_holder() {
    let cluster = Cluster::start(2).await;
    let addresses = cluster.addresses();
    let holder = cluster.nodes[&addresses[0]].pid().to_string();
    let elsewhere = cluster.directory.path().join("elsewhere");
    let (code, text) = refused(&cluster, &addresses[0], &elsewhere);
    assert!(code == 5 && text.contains(&holder), "address: {code} {text}");

    let spare = format!("127.0.0.1:{}", super::cluster::free_port());
    let (code, text) = refused(&cluster, &spare, &cluster.nodes[&addresses[0]].data);
    assert!(code == 5 && text.contains(&holder), "directory in use: {code} {text}");

    let listener = TcpListener::bind(&spare).unwrap();
    let (code, text) = refused(&cluster, &spare, &elsewhere);
    assert!(code == 5 && text.contains(&std::process::id().to_string()), "port: {code} {text}");
    drop(listener);

    let (code, text) = refused(&cluster, "192.0.2.1:4000", &cluster.directory.path().join("x"));
    assert!(code == 2 && text.contains("not an address of this host"), "foreign address: {code} {text}");
    cluster.client(&addresses).put(put_request("still", "here")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_another_cluster_or_node_or_a_lost_register_is_refused_and_left_alone() {
    let mut one = Cluster::start(1).await;
    let mut two = Cluster::start(1).await;
    let (first, second) = (one.addresses()[0].clone(), two.addresses()[0].clone());
    one.client(std::slice::from_ref(&first)).put(put_request("mine", "1")).await.unwrap();
    one.nodes.get_mut(&first).unwrap().kill();
    two.nodes.get_mut(&second).unwrap().kill();
    let data = one.nodes[&first].data.clone();
    let (code, text) = refused(&two, &second, &data);
    assert!(code == 5 && text.contains(&first), "another node's directory: {code} {text}");
    let (code, text) = refused(&two, &first, &data);
    assert!(code == 5 && text.contains("cluster"), "another cluster's register: {code} {text}");
    let register = one.register();
    let away = one.directory.path().join("away");
    std::fs::rename(&register, &away).unwrap();
    let (code, text) = refused(&one, &first, &data);
    assert!(code == 1 && text.contains("has seen epoch"), "no register: {code} {text}");
    std::fs::remove_dir_all(&register).unwrap();
    std::fs::rename(&away, &register).unwrap();

    let newest = std::fs::read_dir(&register)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("view-"))
        .max()
        .unwrap();
    let whole = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &whole[..whole.len() / 2]).unwrap();
    let (code, text) = refused(&one, &first, &data);
    let name = newest.file_name().unwrap().to_string_lossy().into_owned();
    assert!(code == 1 && text.contains(&name), "a truncated register: {code} {text}");
    std::fs::write(&newest, &whole).unwrap();

    one.spawn(&first);
    one.wait_in_sync().await;
    assert_eq!(
        get(&one.client(&[first]), "mine").await.as_deref(),
        Some("1"),
        "nothing was lost by all this"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_refused_in_the_middle_and_cut_at_a_torn_end() {
    let mut cluster = Cluster::start(1).await;
    let address = cluster.addresses()[0].clone();
    let client = cluster.client(std::slice::from_ref(&address));
    for number in 0..20 {
        client.put(put_request(&format!("key{number}"), "a value that can be found again")).await.unwrap();
    }
    let process = cluster.nodes.get_mut(&address).unwrap();
    process.kill();
    let data = process.data.clone();
    let segment = std::fs::read_dir(data.join("log")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = Vec::new();
    std::fs::File::open(&segment).unwrap().read_to_end(&mut bytes).unwrap();
    let at = bytes.windows(5).position(|window| window == b"key10").unwrap();
    let mut damaged = bytes.clone();
    damaged[at] ^= 1;
    std::fs::write(&segment, &damaged).unwrap();
    let (code, text) = refused(&cluster, &address, &data);
    assert!(code == 1 && text.contains("damaged") && text.contains("were synced here"), "{code} {text}");
    assert_eq!(std::fs::read(&segment).unwrap(), damaged, "a refusal changes nothing");

    // Half a record after the last one: what a power cut leaves of a write that nobody was told of.
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut torn = bytes.clone();
    torn[end..end + 30].copy_from_slice(&[0xab; 30]);
    std::fs::write(&segment, &torn).unwrap();
    cluster.spawn(&address);
    cluster.wait_in_sync().await;
    let client = cluster.client(std::slice::from_ref(&address));
    assert!(get(&client, "key19").await.is_some());
}

#[test]
fn bad_arguments_are_refused_with_what_was_expected() {
    for (arguments, expected) in [
        (vec!["--address", "nowhere"], "host:port"),
        (vec!["--address", "0.0.0.0:1"], "every interface"),
        (vec!["--address", "127.0.0.1:1", "--register", "nfs:x"], "file:DIRECTORY"),
        (vec!["--address", "127.0.0.1:1", "--failure-timeout", "soon"], "not a duration"),
        (vec!["--nonsense"], "--nonsense"),
    ] {
        let output = std::process::Command::new(replserver()).args(&arguments).output().unwrap();
        let (code, text) = said(&output);
        assert!(code == 2 && text.contains(expected), "{arguments:?}: {code} {text}");
    }
    let directory = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(replserver())
        .args(["--address", "127.0.0.1:1", "--failure-timeout", "60ms", "--register"])
        .arg(format!("file:{}", directory.path().display()))
        .args(["--data-dir", "x"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn requests_larger_than_an_entry_of_the_log_are_a_usage_error() {
    let directory = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(replserver())
        .args(["--address", "127.0.0.1:1", "--max-request-bytes", "16777217", "--register"])
        .arg(format!("file:{}", directory.path().join("register").display()))
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .output()
        .unwrap();
    let (code, text) = said(&output);
    assert!(code == 2, "{code} {text}");
    assert!(text.contains("--max-request-bytes is 16777217"), "{text}");
    assert!(text.contains("at most 16777216 bytes"), "{text}");
    assert!(std::fs::read_dir(directory.path()).unwrap().next().is_none(), "something was made");
}
