//! What shells are told: the completer is driven as they drive it.

use std::process::{Command, Stdio};

use super::cli::Scene;

/// What bash is offered after these words, the last of which is being typed.
fn offered(scene: &Scene, words: &[&str]) -> Vec<String> {
    asked(scene, "bash", &[("_CLAP_COMPLETE_INDEX", &words.len().to_string()), ("_CLAP_IFS", "\n")], words)
}

fn asked(scene: &Scene, shell: &str, variables: &[(&str, &str)], words: &[&str]) -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replcluster"));
    command.args(["--", "replcluster"]).args(words).current_dir(scene.directory.path());
    command.env_remove("REPLCLUSTER_CONFIG").env("COMPLETE", shell).envs(variables.iter().copied());
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn nodes_and_roles_are_offered_where_a_verb_takes_them() {
    let scene = Scene::new(3);
    let nodes: Vec<String> = (0..3).map(|node| scene.address(node)).collect();
    let targets: Vec<String> =
        nodes.iter().cloned().chain(["leader", "follower", "followers", "all"].map(str::to_owned)).collect();
    for verb in ["kill", "pause", "resume", "start", "stop", "restart"] {
        let found = offered(&scene, &[verb, ""]);
        let mut expected = targets.clone();
        // What can be killed is more than what can be started.
        expected.extend((verb == "kill").then(|| "supervisor".to_owned()));
        let values: Vec<&String> = found.iter().filter(|one| !one.starts_with('-')).collect();
        assert_eq!(values, expected.iter().collect::<Vec<_>>(), "{verb}");
    }
    for words in [&["move-leader", ""][..], &["remove", ""], &["logs", ""], &["up", "--only", ""]] {
        let found = offered(&scene, words);
        assert!(nodes.iter().all(|node| found.contains(node)), "{words:?}: {found:?}");
    }
    assert_eq!(offered(&scene, &["kill", "foll"]), ["follower", "followers"]);
}

#[test]
fn an_end_of_an_address_is_completed_once_it_is_begun() {
    let scene = Scene::new(3);
    let end = scene.address(1).split_once(':').unwrap().1.to_owned();
    assert_eq!(offered(&scene, &["kill", &format!(":{end}")]), [format!(":{end}")]);
    assert!(!offered(&scene, &["kill", ""]).contains(&format!(":{end}")));
}

#[test]
fn further_nodes_of_a_list_are_offered() {
    let scene = Scene::new(3);
    let begun = format!("{},", scene.address(0));
    let found = offered(&scene, &["up", "--only", &begun]);
    assert!(found.contains(&format!("{begun}{}", scene.address(1))), "{found:?}");
}

#[test]
fn the_configuration_named_on_the_line_is_the_one_that_counts() {
    let (scene, other) = (Scene::new(1), Scene::new(3));
    let path = other.path("cluster.toml");
    let path = path.to_str().unwrap();
    for words in [&["-f", path, "kill", ""][..], &["kill", "-f", path, ""], &["--config", path, "kill", ""]] {
        let found = offered(&scene, words);
        assert!(
            found.contains(&other.address(2)) && !found.contains(&scene.address(0)),
            "{words:?}: {found:?}"
        );
    }
}

#[test]
fn nodes_that_answer_say_how_they_stand_and_nothing_is_started_by_asking() {
    let scene = Scene::new(2);
    let told = |scene: &Scene| asked(scene, "fish", &[], &["kill", ""]);
    assert!(told(&scene).contains(&format!("{}\tdoes not answer", scene.address(0))));
    assert!(!scene.path(".replcluster").exists());
    scene.done(&["up"]);
    // The leader may need a moment longer than a shell is made to wait where a machine is busy.
    let begun = std::time::Instant::now();
    loop {
        let found = told(&scene);
        if found.contains(&format!("{}\tleader, ready", scene.address(0)))
            && found.contains(&format!("{}\tfollower, ready", scene.address(1)))
            && found.contains(&format!("leader\tnow {}", scene.address(0)))
        {
            return;
        }
        assert!(begun.elapsed().as_secs() < 30, "{found:?}");
    }
}

#[test]
fn a_node_that_hangs_does_not_hold_the_shell() {
    let scene = Scene::new(1);
    std::fs::create_dir(scene.path(".replcluster")).unwrap();
    let _silent = std::net::TcpListener::bind(scene.address(0)).unwrap();
    let begun = std::time::Instant::now();
    assert!(offered(&scene, &["kill", ""]).contains(&scene.address(0)));
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}

/// Bash itself, where it is installed: it splits addresses at colons.
#[test]
fn bash_completes_an_address_that_it_takes_for_three_words() {
    let scene = Scene::new(3);
    let directory = std::path::Path::new(env!("CARGO_BIN_EXE_replcluster")).parent().unwrap();
    let (first, address) = (scene.address(0), scene.address(1));
    let (host, port) = address.split_once(':').unwrap();
    let script = format!(
        "source <(replcluster completions bash) || exit 1
         complete_line() {{ COMP_LINE=$1; COMP_POINT=${{#COMP_LINE}}; shift; COMP_WORDS=(\"$@\")
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _replcluster; echo \"${{COMPREPLY[@]}}\"; }}
         complete_line 'replcluster kill {host}:{port}' replcluster kill {host} : {port}
         complete_line 'replcluster kill :{port}' replcluster kill : {port}
         complete_line 'replcluster up --only {first},{host}:{port}' replcluster up --only {first_host} : {first_port},{host} : {port}
         complete_line 'replcluster move-l' replcluster move-l",
        first_host = first.split_once(':').unwrap().0,
        first_port = first.split_once(':').unwrap().1,
    );
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", &script]).current_dir(scene.directory.path()).env("PATH", path);
    let output = match bash.env_remove("REPLCLUSTER_CONFIG").stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => return eprintln!("SKIPPED: bash is not asked: {error}"),
    };
    let lines: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    let expected = [port.to_owned(), port.to_owned(), port.to_owned(), "move-leader".to_owned()];
    assert_eq!(lines, expected, "{}", String::from_utf8_lossy(&output.stderr));
}
