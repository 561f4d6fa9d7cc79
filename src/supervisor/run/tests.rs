//! A supervisor in this process with shell scripts for nodes, and one answering node where an answer matters.

use std::future::Future;
use std::os::unix::fs::PermissionsExt;

use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;

use super::*;
use crate::control::cause::Cause;
use crate::proto::replcluster::describe_response::Role;
use crate::proto::replcluster::node_server::{Node, NodeServer};
use crate::proto::replcluster::{
    DescribeRequest, RemoveRequest, RemoveResponse, SetLogLevelRequest, SetLogLevelResponse, ShutdownRequest,
    ShutdownResponse,
};
use crate::supervisor::record::{NodeRecord, Phase};
use crate::supervisor::socket::Conversation;
use crate::supervisor::wire::OutcomeKind;

mod begun;

const LONGEST_WAIT: Duration = Duration::from_secs(20);

struct Scene {
    _directory: tempfile::TempDir,
    options: Options,
    layout: Layout,
    nodes: Vec<NodeId>,
    /// Held so that no other test is given the same ports; nobody answers there unless a test says so.
    ports: Vec<std::net::TcpListener>,
}

impl Scene {
    /// A cluster of two whose nodes run this script.
    fn new(script: &str) -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let ports: Vec<std::net::TcpListener> =
            (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<String> =
            ports.iter().map(|port| port.local_addr().unwrap().to_string()).collect();
        let path = directory.path().join("cluster.toml");
        std::fs::write(&path, format!("name = \"t\"\nnodes = {addresses:?}\n")).unwrap();
        let server = directory.path().join("replserver");
        std::fs::write(&server, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&server, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = config::load(&path).unwrap();
        let layout = Layout::new(&config);
        let options = Options {
            config: path,
            server: Some(server),
            foreground: false,
            interrupt: CancellationToken::new(),
        };
        Scene { _directory: directory, options, layout, nodes: config.nodes, ports }
    }

    fn play<F: Future<Output = ()>>(script: &str, scene: impl FnOnce(Scene) -> F) {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(scene(Scene::new(script)));
    }

    async fn begin(&self) -> (JoinHandle<Result<(), SupervisorError>>, Conversation) {
        let options = self.options.clone();
        let running = tokio::spawn(async move {
            // A process that another test is just starting may still hold this process's locks.
            loop {
                match run(options.clone()).await {
                    Err(SupervisorError::Lock(LockError::Held { .. })) => tokio::task::yield_now().await,
                    other => return other,
                }
            }
        });
        // The socket of one that was just aborted may still take a connection: only an answer counts.
        let conversation = until(async || {
            let mut conversation = Conversation::connect(&self.layout.socket()).await.ok()?;
            conversation.ask(&Request::Snapshot).await.ok().map(|_| conversation)
        })
        .await;
        (running, conversation)
    }

    fn name(&self, index: usize) -> Vec<String> {
        vec![self.nodes[index].to_string()]
    }

    fn events(&self) -> Vec<String> {
        let entries = events::read(&self.layout.events()).unwrap();
        entries
            .into_iter()
            .map(|entry| {
                let value = serde_json::to_value(entry).unwrap();
                let text =
                    |key: &str| value.get(key).map(|v| v.to_string().replace('"', "")).unwrap_or_default();
                [text("event"), text("cause")].join(" ").trim().to_owned()
            })
            .collect()
    }
}

impl Scene {
    /// The phases of faults that were told, in order.
    fn phases(&self) -> Vec<String> {
        events::read(&self.layout.events())
            .unwrap()
            .into_iter()
            .filter_map(|entry| match entry.event {
                events::Event::Fault { phase, .. } => {
                    Some(serde_json::to_value(phase).unwrap().as_str().unwrap().to_owned())
                }
                _ => None,
            })
            .collect()
    }
}

/// A test that fails leaves no process behind.
impl Drop for Scene {
    fn drop(&mut self) {
        let Ok(record) = record::load(&self.layout.state()) else { return };
        for id in record.nodes.values().filter_map(|node| node.process.as_ref()) {
            if let Ok(Some(handle)) = os::Handle::open(id) {
                let _ = handle.signal(9);
            }
        }
    }
}

/// Asks again and again until there is an answer; the suite fails loudly rather than hang.
async fn until<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONGEST_WAIT, asking).await.expect("what was waited for did not happen")
}

async fn snapshot(conversation: &mut Conversation, node: &[String]) -> NodeRecord {
    match conversation.ask(&Request::Snapshot).await.unwrap() {
        Reply::Snapshot { record } => record.nodes[&node[0]].clone(),
        other => panic!("{other:?}"),
    }
}

async fn outcome(conversation: &mut Conversation, request: Request) -> (OutcomeKind, Option<u32>) {
    match conversation.ask(&request).await.unwrap() {
        Reply::Outcomes { outcomes } => (outcomes[0].result.clone(), outcomes[0].pid),
        other => panic!("{other:?}"),
    }
}

async fn wait_for(
    conversation: &mut Conversation,
    node: &[String],
    mut condition: impl FnMut(&NodeRecord) -> bool,
) -> NodeRecord {
    until(async || {
        let record = snapshot(conversation, node).await;
        condition(&record).then_some(record)
    })
    .await
}

async fn quit(running: JoinHandle<Result<(), SupervisorError>>, conversation: &mut Conversation) {
    let _ = conversation.ask(&Request::Quit).await;
    running.await.unwrap().unwrap();
}

async fn end(conversation: &mut Conversation, node: &[String]) {
    let _ = outcome(
        conversation,
        Request::Kill {
            nodes: node.to_vec(),
            signal: 9,
            fault: events::new_id(),
            only: vec![],
            even_last: true,
        },
    )
    .await;
    wait_for(conversation, node, |record| record.process.is_none()).await;
}

#[test]
fn a_killed_node_stays_down_and_its_end_is_the_operators() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(0);
        let (result, pid) = outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        assert_eq!(result, OutcomeKind::Accepted);
        let id = os::identify(pid.unwrap()).unwrap();
        let (again, same) = outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        assert_eq!((again, same), (OutcomeKind::Already, pid));
        end(&mut talk, &node).await;
        let record = snapshot(&mut talk, &node).await;
        assert!(!os::is_alive(&id));
        let exit = record.last_exit.unwrap();
        assert_eq!((exit.signal, exit.cause), (Some(9), Cause::Operator));
        assert_eq!((record.phase, record.wanted, record.spawns), (Phase::Down, false, 1));
        let (dead, _) = outcome(
            &mut talk,
            Request::Kill {
                nodes: node.clone(),
                signal: 9,
                fault: events::new_id(),
                only: vec![],
                even_last: true,
            },
        )
        .await;
        assert_eq!(dead, OutcomeKind::Denied { reason: "it is not running".to_owned() });
        quit(running, &mut talk).await;
        assert_eq!(
            scene.events(),
            [
                "supervisor-started",
                "started",
                "fault",
                "fault",
                "exited operator",
                "fault",
                "supervisor-ended"
            ]
        );
    });
}

#[test]
fn a_node_that_dies_by_itself_is_started_again_with_its_exact_exit_told() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(0);
        let (_, pid) = outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        let handle = os::Handle::open(&os::identify(pid.unwrap()).unwrap()).unwrap().unwrap();
        handle.signal(11).unwrap();
        let record =
            wait_for(&mut talk, &node, |record| record.spawns == 2 && record.process.is_some()).await;
        let exit = record.last_exit.unwrap();
        assert_eq!((exit.signal, exit.cause), (Some(11), Cause::Crash));
        assert_ne!(record.process.unwrap().pid, pid.unwrap());
        end(&mut talk, &node).await;
        quit(running, &mut talk).await;
    });
}

#[test]
fn a_node_that_cannot_use_its_command_line_is_given_up_at_once() {
    Scene::play("exit 2", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(0);
        outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        let record = wait_for(&mut talk, &node, |record| record.phase == Phase::Failed).await;
        assert_eq!((record.spawns, record.last_exit.unwrap().code), (1, Some(2)));
        quit(running, &mut talk).await;
        assert!(scene.events().contains(&"gave-up".to_owned()));
    });
}

#[test]
fn the_end_of_a_supervisor_ends_no_node_and_the_next_takes_over() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(1);
        let (_, pid) = outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        let id = os::identify(pid.unwrap()).unwrap();
        // As after a SIGKILL: no farewell, the lock freed by the end of the task.
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        assert!(os::is_alive(&id));
        let (running, mut talk) = scene.begin().await;
        let record = snapshot(&mut talk, &node).await;
        assert_eq!((record.process, record.spawns), (Some(id.clone()), 1));
        end(&mut talk, &node).await;
        assert!(!os::is_alive(&id));
        let exit = snapshot(&mut talk, &node).await.last_exit.unwrap();
        // No child of the new one: its status is known where the kernel tells.
        assert_eq!((exit.code, exit.cause), (None, Cause::Operator));
        assert!(matches!(exit.signal, None | Some(9)), "{exit:?}");
        quit(running, &mut talk).await;
        assert!(scene.events().contains(&"adopted".to_owned()));
    });
}

#[test]
fn a_node_that_died_unseen_is_restarted_if_the_cluster_lives_and_left_if_it_does_not() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let (first, second) = (scene.name(0), scene.name(1));
        outcome(&mut talk, Request::Start { nodes: [first.clone(), second.clone()].concat() }).await;
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        let record = record::load(&scene.layout.state()).unwrap();
        let id = record.nodes[&first[0]].process.clone().unwrap();
        os::Handle::open(&id).unwrap().unwrap().signal(9).unwrap();
        until(async || (!os::is_alive(&id)).then_some(())).await;
        let (running, mut talk) = scene.begin().await;
        let record =
            wait_for(&mut talk, &first, |record| record.spawns == 2 && record.process.is_some()).await;
        assert_eq!(record.last_exit.unwrap().cause, Cause::Unknown);
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        for id in record::load(&scene.layout.state())
            .unwrap()
            .nodes
            .values()
            .filter_map(|node| node.process.clone())
        {
            os::Handle::open(&id).unwrap().unwrap().signal(9).unwrap();
            until(async || (!os::is_alive(&id)).then_some(())).await;
        }
        let (running, mut talk) = scene.begin().await;
        for node in [&first, &second] {
            let record = snapshot(&mut talk, node).await;
            assert_eq!((record.phase, record.wanted, record.process), (Phase::Down, false, None));
        }
        quit(running, &mut talk).await;
    });
}

#[test]
fn a_pause_with_an_end_thaws_by_itself() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(0);
        let (_, pid) = outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        let pause =
            |for_ms| Request::Pause { nodes: node.clone(), for_ms, fault: "f".to_owned(), even_last: true };
        outcome(&mut talk, pause(None)).await;
        assert!(os::is_frozen_whole(pid.unwrap()), "answered when it is frozen");
        let held = talk.ask(&Request::Hold { fault: "f".to_owned() }).await.unwrap();
        assert_eq!(held, Reply::Done);
        assert_eq!(snapshot(&mut talk, &node).await.phase, Phase::Paused);
        outcome(&mut talk, pause(Some(30))).await;
        until(async || (!os::stat(pid.unwrap()).unwrap().is_frozen()).then_some(())).await;
        let record = wait_for(&mut talk, &node, |record| record.phase == Phase::Starting).await;
        assert_eq!(record.fault, None);
        assert_eq!(scene.phases(), ["intent", "applied", "seen", "held", "healed"]);
        end(&mut talk, &node).await;
        quit(running, &mut talk).await;
    });
}

#[test]
fn a_pause_whose_giver_goes_away_is_undone() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(0);
        let (_, pid) = outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        let mut giver = Conversation::connect(&scene.layout.socket()).await.unwrap();
        let request =
            Request::Pause { nodes: node.clone(), for_ms: None, fault: "f".to_owned(), even_last: true };
        outcome(&mut giver, request).await;
        assert!(os::is_frozen_whole(pid.unwrap()));
        drop(giver);
        until(async || (!os::stat(pid.unwrap()).unwrap().is_frozen()).then_some(())).await;
        wait_for(&mut talk, &node, |record| record.fault.is_none()).await;
        assert_eq!(scene.phases(), ["intent", "applied", "seen", "abandoned"]);
        end(&mut talk, &node).await;
        quit(running, &mut talk).await;
    });
}

#[test]
fn a_new_supervisor_undoes_a_pause_that_was_cut_short_and_keeps_one_that_is_wanted() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let (cut, wanted) = (scene.name(0), scene.name(1));
        let nodes = [cut.clone(), wanted.clone()].concat();
        outcome(&mut talk, Request::Start { nodes }).await;
        let pause = |node: &[String], fault: &str| Request::Pause {
            nodes: node.to_vec(),
            for_ms: None,
            fault: fault.to_owned(),
            even_last: true,
        };
        outcome(&mut talk, pause(&wanted, "w")).await;
        talk.ask(&Request::Hold { fault: "w".to_owned() }).await.unwrap();
        outcome(&mut talk, pause(&cut, "c")).await;
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        let (running, mut talk) = scene.begin().await;
        let record = snapshot(&mut talk, &cut).await;
        assert_eq!((record.fault.clone(), record.phase), (None, Phase::Starting));
        let pid = record.process.unwrap().pid;
        until(async || (!os::stat(pid).unwrap().is_frozen()).then_some(())).await;
        let record = snapshot(&mut talk, &wanted).await;
        assert_eq!((record.fault.unwrap().id.as_str(), record.phase), ("w", Phase::Paused));
        assert!(os::is_frozen_whole(record.process.unwrap().pid));
        outcome(&mut talk, Request::Resume { nodes: wanted.clone() }).await;
        assert_eq!(snapshot(&mut talk, &wanted).await.fault, None);
        for node in [&cut, &wanted] {
            end(&mut talk, node).await;
        }
        quit(running, &mut talk).await;
    });
}

#[test]
fn a_process_whose_number_nobody_noted_is_found_by_what_it_was_given_and_told_once() {
    // The shell keeps the arguments on its command line while it waits.
    Scene::play("while :; do sleep 0.05; done", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(0);
        let (_, pid) = outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        // As if the supervisor had died between the start and both notes of it.
        let mut record = record::load(&scene.layout.state()).unwrap();
        let of_node = record.nodes.get_mut(&node[0]).unwrap();
        of_node.process = None;
        of_node.spawns = 0;
        of_node.phase = Phase::Starting;
        record::save(&scene.layout.state(), &record).unwrap();
        let path = scene.layout.events();
        let history = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = history.lines().filter(|line| !line.contains("\"started\"")).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let (running, mut talk) = scene.begin().await;
        let record = snapshot(&mut talk, &node).await;
        assert_eq!((record.process.map(|id| id.pid), record.spawns), (pid, 1));
        let started = scene.events().iter().filter(|event| *event == "started").count();
        assert_eq!(started, 1, "{:?}", scene.events());
        end(&mut talk, &node).await;
        quit(running, &mut talk).await;
    });
}

#[test]
fn a_node_says_what_it_ran_into() {
    Scene::play("echo 'replserver: h:1 is taken by x (pid 7)' >&2; exit 5", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(0);
        outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        let record = wait_for(&mut talk, &node, |record| record.last_exit.is_some()).await;
        let exit = record.last_exit.unwrap();
        assert_eq!(exit.trouble, Some(crate::control::cause::Trouble::Port));
        assert_eq!(exit.words.as_deref(), Some("h:1 is taken by x (pid 7)"));
        outcome(&mut talk, Request::Stop { nodes: node.clone(), patience_ms: 1000 }).await;
        wait_for(&mut talk, &node, |record| record.process.is_none()).await;
        quit(running, &mut talk).await;
    });
}

#[test]
fn a_node_that_ignores_the_request_to_end_is_killed_when_patience_ends() {
    Scene::play("trap '' TERM; while :; do sleep 0.1; done", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(0);
        outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        outcome(&mut talk, Request::Stop { nodes: node.clone(), patience_ms: 300 }).await;
        let record = wait_for(&mut talk, &node, |record| record.process.is_none()).await;
        let exit = record.last_exit.unwrap();
        assert_eq!(exit.cause, Cause::Operator);
        assert!(matches!(exit.signal, Some(9 | 15)), "{exit:?}");
        quit(running, &mut talk).await;
    });
}

#[test]
fn a_second_supervisor_is_refused_and_one_without_a_directory_ends_by_itself() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        assert!(matches!(
            run(scene.options.clone()).await,
            Err(SupervisorError::Lock(LockError::Held { .. }))
        ));
        assert_eq!(talk.ask(&Request::Reload).await.unwrap(), Reply::Done);
        std::fs::remove_dir_all(scene.layout.root()).unwrap();
        let ended = tokio::time::timeout(LONGEST_WAIT, running).await.unwrap().unwrap();
        assert!(matches!(ended, Err(SupervisorError::DirectoryGone(_))));
        assert!(!scene.layout.root().exists());
    });
}

#[test]
fn nodes_are_added_and_taken_out_by_a_reload() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let added = NodeId::parse("127.0.0.1:1").unwrap();
        let editor = || config::edit::Editor::open(&scene.options.config).unwrap();
        editor().add_nodes(std::slice::from_ref(&added)).unwrap();
        assert_eq!(talk.ask(&Request::Reload).await.unwrap(), Reply::Done);
        assert_eq!(snapshot(&mut talk, &[added.to_string()]).await.phase, Phase::Down);
        editor().remove_nodes(std::slice::from_ref(&added)).unwrap();
        talk.ask(&Request::Reload).await.unwrap();
        let (gone, _) = outcome(&mut talk, Request::Start { nodes: vec![added.to_string()] }).await;
        assert!(matches!(gone, OutcomeKind::Denied { .. }));
        std::fs::write(&scene.options.config, "nodes = [").unwrap();
        assert!(matches!(talk.ask(&Request::Reload).await.unwrap(), Reply::Refused { .. }));
        quit(running, &mut talk).await;
    });
}

/// A node that answers as if it were the process remembered for its address.
struct Answering {
    layout: Layout,
    node: NodeId,
}

#[tonic::async_trait]
impl Node for Answering {
    async fn describe(
        &self,
        _: tonic::Request<DescribeRequest>,
    ) -> Result<tonic::Response<DescribeResponse>, tonic::Status> {
        let record = record::load(&self.layout.state()).unwrap();
        let own = &record.nodes[self.node.as_str()];
        let answer = DescribeResponse {
            address: self.node.to_string(),
            pid: own.process.as_ref().map_or(0, |id| id.pid),
            nonce: own.nonce.clone(),
            role: Role::Leader.into(),
            ready: true,
            epoch: 3,
            leader: self.node.to_string(),
            in_sync: vec![self.node.to_string()],
            ..DescribeResponse::default()
        };
        Ok(tonic::Response::new(answer))
    }

    async fn set_log_level(
        &self,
        _: tonic::Request<SetLogLevelRequest>,
    ) -> Result<tonic::Response<SetLogLevelResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not asked here"))
    }

    async fn remove(
        &self,
        _: tonic::Request<RemoveRequest>,
    ) -> Result<tonic::Response<RemoveResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not asked here"))
    }

    async fn shutdown(
        &self,
        _: tonic::Request<ShutdownRequest>,
    ) -> Result<tonic::Response<ShutdownResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not asked here"))
    }
}

#[test]
fn a_node_that_says_it_serves_is_serving_and_its_view_goes_into_the_history() {
    Scene::play("exec sleep 1000", async |scene| {
        let node = scene.nodes[0].clone();
        let service = NodeServer::new(Answering { layout: scene.layout.clone(), node: node.clone() });
        let here = |port: &&std::net::TcpListener| port.local_addr().unwrap().to_string() == node.as_str();
        let port = scene.ports.iter().find(here).unwrap().try_clone().unwrap();
        port.set_nonblocking(true).unwrap();
        let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(port).unwrap());
        let server = tonic::transport::Server::builder().add_service(service);
        let answering = tokio::spawn(server.serve_with_incoming(incoming));
        let (running, mut talk) = scene.begin().await;
        let name = scene.name(0);
        outcome(&mut talk, Request::Start { nodes: name.clone() }).await;
        wait_for(&mut talk, &name, |record| record.phase == Phase::Serving).await;
        until(async || scene.events().contains(&"view".to_owned()).then_some(())).await;
        end(&mut talk, &name).await;
        quit(running, &mut talk).await;
        answering.abort();
    });
}
