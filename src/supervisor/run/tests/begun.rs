//! What was begun is ended, what cannot be written down is not begun.

use super::*;

/// Nothing can be remembered while this is there: not even root writes into a directory.
fn unwritable(scene: &Scene) -> std::path::PathBuf {
    let in_the_way = scene.layout.state().with_extension("json.new");
    std::fs::create_dir(&in_the_way).unwrap();
    in_the_way
}

fn kill_of(node: &[String], only: Vec<u32>) -> Request {
    Request::Kill { nodes: node.to_vec(), signal: 9, fault: events::new_id(), only, even_last: true }
}

#[test]
fn what_cannot_be_written_down_is_not_done_unless_everything_is_to_end() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(0);
        let (_, pid) = outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        let pid = pid.unwrap();
        let pause = |fault: &str| Request::Pause {
            nodes: node.clone(),
            for_ms: None,
            fault: fault.to_owned(),
            even_last: true,
        };
        let denied = |result: &OutcomeKind| matches!(result, OutcomeKind::Denied { reason } if reason.contains("cannot be written down"));
        let in_the_way = unwritable(&scene);
        let (result, _) = outcome(&mut talk, pause("f")).await;
        assert!(denied(&result), "{result:?}");
        let (result, _) = outcome(&mut talk, kill_of(&node, vec![pid])).await;
        assert!(denied(&result), "{result:?}");
        std::fs::remove_dir(&in_the_way).unwrap();
        // The same where it is the history.
        let (history, aside) = (scene.layout.events(), scene.layout.root().join("aside"));
        std::fs::rename(&history, &aside).unwrap();
        std::fs::create_dir(&history).unwrap();
        let (result, _) = outcome(&mut talk, pause("g")).await;
        assert!(denied(&result), "{result:?}");
        let note = Request::Note { id: "n".to_owned(), event: events::Event::SupervisorStarted { pid: 1 } };
        assert!(matches!(talk.ask(&note).await.unwrap(), Reply::Refused { .. }));
        std::fs::remove_dir(&history).unwrap();
        std::fs::rename(&aside, &history).unwrap();
        assert!(!os::stat(pid).unwrap().is_frozen());
        assert_eq!(scene.phases(), Vec::<String>::new(), "nothing was done, nothing is told");
        assert_eq!(snapshot(&mut talk, &node).await.fault, None);
        // A pause that was done and whose confirmation cannot be written down is undone.
        outcome(&mut talk, pause("h")).await;
        let in_the_way = unwritable(&scene);
        let held = talk.ask(&Request::Hold { fault: "h".to_owned() }).await.unwrap();
        assert!(matches!(held, Reply::Refused { .. }), "{held:?}");
        until(async || (!os::stat(pid).unwrap().is_frozen()).then_some(())).await;
        assert_eq!(scene.phases(), ["intent", "applied", "seen", "abandoned"]);
        let (result, _) = outcome(&mut talk, kill_of(&node, vec![])).await;
        assert_eq!(result, OutcomeKind::Accepted, "an end of everything needs no note");
        wait_for(&mut talk, &node, |record| record.process.is_none()).await;
        std::fs::remove_dir(&in_the_way).unwrap();
        quit(running, &mut talk).await;
    });
}

#[test]
fn a_pause_that_only_the_history_knows_is_undone_and_told_to_be_over() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(0);
        let (_, pid) = outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        let pause =
            Request::Pause { nodes: node.clone(), for_ms: None, fault: "f".to_owned(), even_last: true };
        outcome(&mut talk, pause).await;
        talk.ask(&Request::Hold { fault: "f".to_owned() }).await.unwrap();
        abort(running).await;
        let mut record = record::load(&scene.layout.state()).unwrap();
        record.nodes.get_mut(&node[0]).unwrap().fault = None;
        record::save(&scene.layout.state(), &record).unwrap();
        let (running, mut talk) = scene.begin().await;
        until(async || (!os::stat(pid.unwrap()).unwrap().is_frozen()).then_some(())).await;
        assert_eq!(scene.phases().last().unwrap(), "healed");
        assert_eq!(snapshot(&mut talk, &node).await.phase, Phase::Starting);
        end(&mut talk, &node).await;
        quit(running, &mut talk).await;
    });
}

/// As after a SIGKILL: no farewell, the lock freed by the end of the task.
async fn abort(running: JoinHandle<Result<(), SupervisorError>>) {
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
}

#[test]
fn one_that_somebody_else_froze_is_frozen_by_us_when_it_is_paused_again() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(0);
        let (_, pid) = outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        abort(running).await;
        let id = os::identify(pid.unwrap()).unwrap();
        os::Handle::open(&id).unwrap().unwrap().signal(19).unwrap();
        until(async || os::is_frozen_whole(id.pid).then_some(())).await;
        let (running, mut talk) = scene.begin().await;
        assert_eq!(snapshot(&mut talk, &node).await.phase, Phase::Paused);
        let pause =
            Request::Pause { nodes: node.clone(), for_ms: Some(30), fault: "f".to_owned(), even_last: true };
        assert_eq!(outcome(&mut talk, pause).await.0, OutcomeKind::Accepted);
        until(async || (!os::stat(id.pid).unwrap().is_frozen()).then_some(())).await;
        wait_for(&mut talk, &node, |record| record.fault.is_none()).await;
        assert_eq!(scene.phases(), ["intent", "applied", "seen", "healed"]);
        end(&mut talk, &node).await;
        quit(running, &mut talk).await;
    });
}

#[test]
fn a_restart_whose_supervisor_dies_in_the_middle_is_ended_by_the_next_even_where_nothing_else_lives() {
    Scene::play("trap '' TERM; while :; do sleep 0.05; done", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(0);
        let (_, pid) = outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        outcome(&mut talk, Request::Restart { nodes: node.clone(), patience_ms: 60_000 }).await;
        abort(running).await;
        let id = os::identify(pid.unwrap()).unwrap();
        os::Handle::open(&id).unwrap().unwrap().signal(9).unwrap();
        until(async || (!os::is_alive(&id)).then_some(())).await;
        let (running, mut talk) = scene.begin().await;
        let record = wait_for(&mut talk, &node, |record| record.process.is_some()).await;
        assert_eq!((record.spawns, record.last_exit.unwrap().cause), (2, Cause::Operator));
        end(&mut talk, &node).await;
        quit(running, &mut talk).await;
    });
}

#[test]
fn a_supervisor_in_the_foreground_refuses_what_would_outlive_it() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(1);
        outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        abort(running).await;
        // Also one that the configuration lists no more.
        config::edit::Editor::open(&scene.options.config).unwrap().remove_nodes(&scene.nodes[1..]).unwrap();
        let before = scene.events();
        let refused =
            until(async || match run(Options { foreground: true, ..scene.options.clone() }).await {
                Err(SupervisorError::Lock(LockError::Held { .. })) => None,
                other => Some(other),
            });
        match refused.await {
            Err(SupervisorError::Survivors { nodes }) => assert_eq!(nodes, scene.nodes[1..]),
            other => panic!("{other:?}"),
        }
        assert_eq!(scene.events(), before, "nothing was touched");
        let (running, mut talk) = scene.begin().await;
        end(&mut talk, &node).await;
        quit(running, &mut talk).await;
    });
}

#[test]
fn a_start_that_fails_for_the_moment_is_told_and_tried_again() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(0);
        let data = scene.layout.data(&scene.nodes[0]);
        std::fs::create_dir_all(data.parent().unwrap()).unwrap();
        std::fs::write(&data, "in the way").unwrap();
        outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        let record = wait_for(&mut talk, &node, |record| record.failures >= 2).await;
        assert_eq!((record.spawns, record.process), (0, None));
        std::fs::remove_file(&data).unwrap();
        let record = wait_for(&mut talk, &node, |record| record.process.is_some()).await;
        assert_eq!(record.spawns, 1);
        assert!(scene.events().contains(&"not-started".to_owned()), "{:?}", scene.events());
        end(&mut talk, &node).await;
        quit(running, &mut talk).await;
    });
}

#[test]
fn failures_count_on_when_another_supervisor_comes() {
    Scene::play("[ -e \"$0.crashes\" ] && exit 1; exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let (crashing, living) = (scene.name(0), scene.name(1));
        let (_, pid) = outcome(&mut talk, Request::Start { nodes: living.clone() }).await;
        // The shell must have looked before the file is there.
        let asleep = || std::fs::read_to_string(format!("/proc/{}/comm", pid.unwrap())).unwrap() == "sleep\n";
        until(async || asleep().then_some(())).await;
        let server = scene.options.server.clone().unwrap();
        std::fs::write(server.with_extension("crashes"), "").unwrap();
        outcome(&mut talk, Request::Start { nodes: crashing.clone() }).await;
        let before = wait_for(&mut talk, &crashing, |record| record.failures >= 3).await;
        abort(running).await;
        let (running, mut talk) = scene.begin().await;
        let after = wait_for(&mut talk, &crashing, |record| record.spawns > before.spawns).await;
        assert!(after.failures >= before.failures, "{} {}", after.failures, before.failures);
        outcome(&mut talk, Request::Stop { nodes: crashing.clone(), patience_ms: 1000 }).await;
        end(&mut talk, &living).await;
        quit(running, &mut talk).await;
    });
}

#[test]
fn an_interrupt_that_comes_before_it_listens_ends_it_and_no_node() {
    Scene::play("exec sleep 1000", async |scene| {
        let (running, mut talk) = scene.begin().await;
        let node = scene.name(0);
        let (_, pid) = outcome(&mut talk, Request::Start { nodes: node.clone() }).await;
        abort(running).await;
        let interrupt = CancellationToken::new();
        interrupt.cancel();
        let ended = until(async || {
            match run(Options { interrupt: interrupt.clone(), ..scene.options.clone() }).await {
                Err(SupervisorError::Lock(LockError::Held { .. })) => None,
                other => Some(other),
            }
        });
        ended.await.unwrap();
        assert_eq!(scene.events().last().unwrap(), "supervisor-ended");
        assert!(os::identify(pid.unwrap()).is_ok());
        let (running, mut talk) = scene.begin().await;
        end(&mut talk, &node).await;
        quit(running, &mut talk).await;
    });
}
