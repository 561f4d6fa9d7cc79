//! Commands from odd places: a directory that was deleted, a terminal without UTF-8, and root in a user's directory.

use super::cli::Scene;

#[test]
fn an_absolute_configuration_needs_no_working_directory() {
    let scene = Scene::new(1);
    scene.done(&["up"]);
    let gone = tempfile::tempdir().unwrap();
    let config = scene.path("cluster.toml");
    let mut command = scene.command(&["-f", config.to_str().unwrap(), "status", "--json"]);
    let script = format!("rmdir {} && exec \"$0\" \"$@\"", gone.path().display());
    let mut shell = std::process::Command::new("/bin/sh");
    shell.arg("-c").arg(script).arg(command.get_program()).args(command.get_args()).current_dir(gone.path());
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    command.current_dir("/");
    assert!(command.output().unwrap().status.success());
}

#[test]
fn a_terminal_without_utf8_gets_ascii() {
    let scene = Scene::new(2);
    for arguments in
        [vec!["up"], vec!["status"], vec!["kill", "follower"], vec!["events"], vec!["--config", "x"]]
    {
        let output = scene.command(&arguments).env("LC_ALL", "C").output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(said.is_ascii(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    }
    scene.config("nodes = [\"http://127.0.0.1:1\"]");
    let output = scene.command(&["check"]).env("LC_ALL", "C").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.is_ascii() && said.contains("did you mean \"127.0.0.1:1\"?"), "{said}");
}

#[test]
fn root_starts_nothing_where_it_would_lock_a_user_out() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let nobody = nix::unistd::User::from_name("nobody").unwrap().expect("every system has it");
    let scene = Scene::new(1);
    nix::unistd::chown(scene.directory.path(), Some(nobody.uid), Some(nobody.gid)).unwrap();
    let (code, said) = scene.said(&["up"]);
    assert!(
        code == 1 && said.contains("belongs to nobody") && said.contains("sudo -u nobody"),
        "{code} {said}"
    );
    assert!(!scene.path(".replcluster").exists(), "nothing was made");
}
