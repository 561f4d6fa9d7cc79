use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::style::{Color, Modifier};

use super::act::{Act, Verb};
use super::draw::draw;
use super::model::{Mode, Picture};
use super::*;
use crate::cli::lines::{Tone, piece};
use crate::cli::status::tests::survey;
use crate::cli::survey::Survey;
use crate::control::health::ClusterState;
use crate::supervisor::events::{Entry, Event as Happened};

fn node(port: u16) -> NodeId {
    NodeId::parse(&format!("127.0.0.1:{port}")).unwrap()
}

fn picture(found: Survey) -> Box<Picture> {
    let started = |port: u16| Entry {
        at: "x".to_owned(),
        id: String::new(),
        event: Happened::Started { node: node(port).to_string(), pid: u32::from(port) },
    };
    Box::new(Picture { found, notes: Vec::new(), history: (2379..2382).map(started).collect() })
}

fn looked(model: &mut Model, found: Survey) -> Vec<Effect> {
    model.update(Event::Looked { at: Duration::from_secs(60), picture: picture(found) })
}

/// Three looks with a load, some reads, a log. 2379 leads, 2380 follows, 2381 is down.
fn model() -> Model {
    let mut model = Model::new("demo");
    for look in 0..3_i64 {
        let mut found = survey(Some(7));
        found.nodes[0].answer.as_mut().unwrap().revision += look * 300;
        let at = Duration::from_millis(250 * look.unsigned_abs());
        model.update(Event::Looked { at, picture: picture(found) });
        model.update(Event::Probed((look != 1).then(|| Duration::from_micros(400))));
    }
    let lines = (0..30).map(|line| format!("14:03:11  INFO line {line}")).collect();
    model.update(Event::Logged { node: node(2379), lines });
    model
}

fn press(model: &mut Model, key: KeyCode) -> Vec<Effect> {
    model.update(Event::Key(KeyEvent::new(key, KeyModifiers::NONE)))
}

fn keys(model: &mut Model, text: &str) -> Vec<Effect> {
    text.chars().flat_map(|key| press(model, KeyCode::Char(key))).collect()
}

fn drawn(model: &Model, palette: Palette, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(model, palette, frame)).unwrap();
    terminal.backend().buffer().clone()
}

/// The window as lines, without the spaces at their ends.
fn window(model: &Model, width: u16, height: u16) -> Vec<String> {
    let buffer = drawn(model, Palette::Plain, width, height);
    let text = |row: &[ratatui::buffer::Cell]| row.iter().map(|cell| cell.symbol()).collect::<String>();
    let rows = buffer.content().chunks(usize::from(width));
    rows.map(|row| text(row).trim_end().to_owned()).collect()
}

fn asked(verb: Verb, port: u16) -> Mode {
    Mode::Asking(Act { verb, node: Some(node(port)) })
}

/// What stands above the keys.
fn told(model: &Model) -> &str {
    model.message.as_ref().map_or("", |(_, text)| text)
}

// --- what is seen ---

#[test]
fn a_window_of_80_by_24_shows_nodes_graphs_history_and_log() {
    let expected = "\
demo  degraded  epoch 4  leader 127.0.0.1:2379  agreed 2/3  survives 1 more
  failure
  NODE            ROLE      STATE  IN-SYNC  LAG  REVISION  PID    UPTIME  SEEN
▶ 127.0.0.1:2379  leader    ready  yes      -    18804     43379  0s      0.0s
  127.0.0.1:2380  follower  ready  yes      2    18204     43380  0s      0.0s
  127.0.0.1:2381  -         down   no       -    -         -      -       1m15s
 writes/s 1 200 ───────────────────────   read latency 0.4 ms ──────────────────
                                     ██                                      █×█
                                     ██                                      █×█
                                     ██                                      █×█
 events ────────────────────────────────────────────────────────────────────────
x 127.0.0.1:2379 started (pid 2379)
x 127.0.0.1:2380 started (pid 2380)
x 127.0.0.1:2381 started (pid 2381)

 log of 127.0.0.1:2379 ─────────────────────────────────────────────────────────
14:03:11  INFO line 24
14:03:11  INFO line 25
14:03:11  INFO line 26
14:03:11  INFO line 27
14:03:11  INFO line 28
14:03:11  INFO line 29

↑↓ select  x kill  p pause  r resume  s start  S stop  a add  ? help  q quit";
    assert_eq!(window(&model(), 80, 24), expected.lines().collect::<Vec<_>>());
}

#[test]
fn a_window_of_40_by_12_drops_columns_graphs_and_keys_but_no_node() {
    let expected = "\
demo  degraded  epoch 4  leader
  127.0.0.1:2379  agreed 2/3  survives 1
  NODE            ROLE      STATE
▶ 127.0.0.1:2379  leader    ready
  127.0.0.1:2380  follower  ready
  127.0.0.1:2381  -         down
 events ────────────────────────────────
x 127.0.0.1:2379 started (pid 2379)
x 127.0.0.1:2380 started (pid 2380)
x 127.0.0.1:2381 started (pid 2381)

↑↓ select  x kill  ? help  q quit";
    assert_eq!(window(&model(), 40, 12), expected.lines().collect::<Vec<_>>());
}

#[test]
fn a_window_of_120_by_40_has_every_column_and_every_key() {
    let shown = window(&model(), 120, 40);
    assert!(shown[1].ends_with("RESTARTS  CPU  MEMORY  SEEN"), "{}", shown[1]);
    assert!(shown[39].contains("l log  e events  ? help  q quit"), "{}", shown[39]);
    assert_eq!(shown[38], "");
    assert_eq!(shown[37], "14:03:11  INFO line 29", "the newest line is the lowest");
}

#[test]
fn every_window_can_be_drawn_and_a_small_one_says_what_is_needed() {
    let mut model = model();
    for act in ["", "?", "?l", "lx"] {
        keys(&mut model, act);
        for width in (1..130).step_by(7) {
            for height in 1..45 {
                drawn(&model, Palette::Coloured, width, height);
            }
        }
    }
    let small = window(&model, 39, 9).join(" ");
    assert!(small.contains("39×9") && small.contains("40×10") && small.contains("q"), "{small}");
}

#[test]
fn a_question_is_shown_whole_in_the_narrowest_window() {
    let mut model = model();
    keys(&mut model, "x");
    let shown = window(&model, 40, 10);
    assert_eq!(
        shown[8..],
        ["kill 127.0.0.1:2379 (leader)? survives 1", "  more failure. [y/N]"],
        "the costs and the answers"
    );
}

#[test]
fn a_verdict_is_shown_whole_in_80_columns() {
    let mut model = model();
    let act = Act { verb: Verb::Kill, node: Some(node(2379)) };
    let printed = "killed 127.0.0.1:2379 (leader, pid 41021) · 127.0.0.1:2380 leads · writes paused 11 ms\n\
                   1 204 acknowledged, 0 lost, 1 indeterminate · proved\n";
    model.update(Event::Ended { number: 0, done: true, said: act.result(printed) });
    let shown = window(&model, 80, 24).join("\n");
    let words: Vec<&str> = shown.split_whitespace().collect();
    assert!(words.join(" ").contains("writes paused 11 ms · 1 204 acknowledged"), "{shown}");
    assert!(shown.contains("· proved"), "{shown}");
}

#[test]
fn the_log_can_have_the_whole_window() {
    let mut model = model();
    keys(&mut model, "l");
    let shown = window(&model, 80, 24);
    assert!(shown[0].starts_with(" log of 127.0.0.1:2379 ─"), "{}", shown[0]);
    assert_eq!(shown[21], "14:03:11  INFO line 29");
    press(&mut model, KeyCode::Esc);
    assert!(window(&model, 80, 24)[0].starts_with("demo"), "Esc leaves the log, not the dashboard");
}

#[test]
fn the_selected_row_is_inverted_and_colours_can_be_left_out() {
    let mut model = model();
    keys(&mut model, "j");
    let colours = |palette| {
        let buffer = drawn(&model, palette, 80, 24);
        buffer.content().iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(colours(Palette::Coloured));
    assert!(!colours(Palette::Plain));
    let buffer = drawn(&model, Palette::Plain, 80, 24);
    let is_inverted = |row: u16| buffer[(2, row)].modifier.contains(Modifier::REVERSED);
    assert_eq!([is_inverted(3), is_inverted(4), is_inverted(5)], [false, true, false]);
}

#[test]
fn more_nodes_than_rows_scroll_to_the_selected_one() {
    let mut model = Model::new("demo");
    let mut found = survey(Some(7));
    while found.nodes.len() < 30 {
        let more = survey(Some(7));
        for (index, mut one) in more.nodes.into_iter().enumerate() {
            one.node = node(3000 + u16::try_from(found.nodes.len()).unwrap());
            found.nodes.push(one);
            found.sum.states.push(more.sum.states[index]);
            found.sum.lags.push(more.sum.lags[index]);
        }
    }
    looked(&mut model, found);
    for _ in 0..40 {
        press(&mut model, KeyCode::Down);
    }
    let last = model.selected.clone().unwrap();
    assert!(window(&model, 80, 24).iter().any(|line| line.contains(last.as_str())), "{last}");
}

#[test]
fn before_the_first_look_and_when_looking_fails_it_says_so() {
    let mut fresh = Model::new("demo");
    assert_eq!(window(&fresh, 80, 24)[0], "looking at demo …");
    fresh.update(Event::Blind { why: "cannot read it".to_owned() });
    assert_eq!(window(&fresh, 80, 24)[0], "cannot read it");
    let mut model = model();
    model.update(Event::Blind { why: "cannot read it".to_owned() });
    assert!(window(&model, 80, 24).contains(&"cannot read it".to_owned()), "above what was last seen");
    looked(&mut model, survey(Some(7)));
    assert!(!window(&model, 80, 24).contains(&"cannot read it".to_owned()));
}

#[test]
fn notes_and_a_dead_supervisor_are_shown_where_they_matter() {
    let mut model = Model::new("demo");
    let mut picture = picture(survey(None));
    picture.notes = vec![vec![piece(Tone::Bad, "127.0.0.1:2381 failed: why")]];
    model.update(Event::Looked { at: Duration::ZERO, picture });
    let shown = window(&model, 120, 24);
    assert!(shown[..2].join(" ").contains("supervisor dead"), "{shown:?}");
    assert!(shown.contains(&"127.0.0.1:2381 failed: why".to_owned()), "{shown:?}");
}

// --- what keys do ---

#[test]
fn the_first_look_selects_a_node_and_follows_its_log() {
    let mut model = Model::new("demo");
    assert_eq!(looked(&mut model, survey(Some(7))), [Effect::Follow(node(2379))]);
    assert_eq!(looked(&mut model, survey(Some(7))), []);
}

#[test]
fn arrows_and_letters_select_and_stop_at_the_ends() {
    let mut model = model();
    assert_eq!(press(&mut model, KeyCode::Up), []);
    assert_eq!(press(&mut model, KeyCode::Down), [Effect::Follow(node(2380))]);
    assert_eq!(model.log, Vec::<String>::new(), "the lines of another node are gone at once");
    assert_eq!(keys(&mut model, "jj"), [Effect::Follow(node(2381))]);
    assert_eq!(keys(&mut model, "kk"), [Effect::Follow(node(2380)), Effect::Follow(node(2379))]);
    let late = Event::Logged { node: node(2381), lines: vec!["late".to_owned()] };
    model.update(late);
    assert_eq!(model.log, Vec::<String>::new());
}

#[test]
fn a_selected_node_that_was_removed_is_not_kept() {
    let mut model = model();
    keys(&mut model, "jj");
    let mut found = survey(Some(7));
    found.nodes.pop();
    found.sum.states.pop();
    found.sum.lags.pop();
    assert_eq!(looked(&mut model, found), [Effect::Follow(node(2379))]);
}

#[test]
fn only_a_clear_yes_does_anything() {
    for answer in [KeyCode::Char('n'), KeyCode::Esc, KeyCode::Enter, KeyCode::Char('x'), KeyCode::Down] {
        let mut model = model();
        assert_eq!(keys(&mut model, "x"), []);
        assert_eq!(model.mode, asked(Verb::Kill, 2379));
        assert_eq!(press(&mut model, answer), [], "{answer:?}");
        assert_eq!((&model.mode, told(&model)), (&Mode::Browsing, "kill 127.0.0.1:2379: not done"));
    }
    let mut model = model();
    let act = Act { verb: Verb::Kill, node: Some(node(2379)) };
    assert_eq!(keys(&mut model, "xy"), [Effect::Begin { number: 0, act: act.clone() }]);
    assert!(window(&model, 80, 24).contains(&"kill 127.0.0.1:2379 …".to_owned()), "it is under way");
    assert_eq!(keys(&mut model, "x"), []);
    assert_eq!((&model.mode, told(&model)), (&Mode::Browsing, "kill 127.0.0.1:2379 is under way"));
    model.update(Event::Ended { number: 0, done: true, said: "proved".to_owned() });
    assert_eq!((model.running.len(), told(&model)), (0, "proved"));
}

#[test]
fn the_act_is_for_the_node_that_was_asked_about_whatever_changes_meanwhile() {
    let mut model = model();
    keys(&mut model, "x");
    let mut found = survey(Some(7));
    found.nodes.remove(0);
    found.sum.states.remove(0);
    found.sum.lags.remove(0);
    looked(&mut model, found);
    let act = Act { verb: Verb::Kill, node: Some(node(2379)) };
    assert_eq!(keys(&mut model, "y"), [Effect::Begin { number: 0, act }]);
}

#[test]
fn every_key_of_an_act_asks_or_says_why_not() {
    let mut paused = survey(Some(7));
    paused.nodes[1].stat.as_mut().unwrap().state = 'T';
    let cases = [
        (0, 'x', Ok(Verb::Kill)),
        (0, 'p', Ok(Verb::Pause)),
        (0, 'S', Ok(Verb::Stop)),
        (0, 'r', Err("127.0.0.1:2379 is not paused")),
        (0, 's', Err("127.0.0.1:2379 runs")),
        (1, 'r', Ok(Verb::Resume)),
        (1, 'x', Ok(Verb::Kill)),
        (1, 'p', Err("127.0.0.1:2380 is paused: r resumes it")),
        (1, 's', Err("127.0.0.1:2380 is paused: r resumes it")),
        (2, 's', Ok(Verb::Start)),
        (2, 'x', Err("127.0.0.1:2381 does not run: s starts it")),
        (2, 'p', Err("127.0.0.1:2381 does not run: s starts it")),
        (2, 'S', Err("127.0.0.1:2381 does not run: s starts it")),
        (2, 'r', Err("127.0.0.1:2381 is not paused")),
    ];
    let mut model = model();
    looked(&mut model, paused);
    for (down, key, expected) in cases {
        model.mode = Mode::Browsing;
        model.message = None;
        keys(&mut model, "kk");
        keys(&mut model, &"j".repeat(down));
        assert_eq!(press(&mut model, KeyCode::Char(key)), [], "nothing is done before a yes");
        let port = 2379 + u16::try_from(down).unwrap();
        match expected {
            Ok(verb) => assert_eq!(model.mode, asked(verb, port), "{key} on {port}"),
            Err(why) => assert_eq!((&model.mode, told(&model)), (&Mode::Browsing, why)),
        }
    }
    model.mode = Mode::Browsing;
    keys(&mut model, "a");
    assert_eq!(model.mode, Mode::Asking(Act { verb: Verb::AddFollower, node: None }));
}

#[test]
fn starting_a_node_of_a_cluster_that_is_down_starts_all_of_it() {
    let mut model = model();
    let mut found = survey(None);
    found.sum.state = ClusterState::Stopped;
    for one in &mut found.nodes {
        (one.process, one.stat, one.answer) = (None, None, None);
    }
    looked(&mut model, found);
    keys(&mut model, "s");
    assert_eq!(window(&model, 80, 24)[23], "nothing runs: start the whole cluster? [y/N]");
    let act = Act { verb: Verb::Up, node: None };
    assert_eq!(act.arguments(), ["up"]);
    assert_eq!(keys(&mut model, "y"), [Effect::Begin { number: 0, act }]);
}

#[test]
fn a_question_says_what_the_act_costs() {
    let question = |found: &Survey, verb, port| Act { verb, node: Some(node(port)) }.question(found);
    let mut found = survey(Some(7));
    let kill = "kill 127.0.0.1:2379 (leader)? survives 1 more failure. [y/N]";
    assert_eq!(question(&found, Verb::Kill, 2379), kill);
    assert_eq!(question(&found, Verb::Start, 2381), "start 127.0.0.1:2381? [y/N]");
    assert!(question(&found, Verb::Kill, 2381).contains("it is not in sync"));
    found.sum.failures_tolerated = 0;
    assert!(question(&found, Verb::Pause, 2380).contains("writes will be refused"));
    found.nodes[1].stat.as_mut().unwrap().state = 'T';
    assert!(
        question(&found, Verb::Stop, 2379).contains("this is the last in-sync node"),
        "the other is frozen"
    );
    found.nodes[1].stat.as_mut().unwrap().state = 'S';
    found.sum.in_sync.truncate(1);
    assert!(question(&found, Verb::Stop, 2379).contains("this is the last in-sync node that runs!"));
    found.sum.leader = None;
    assert!(question(&found, Verb::Stop, 2379).contains("nobody leads"));
    assert_eq!(
        Act { verb: Verb::Kill, node: Some(node(2379)) }.arguments(),
        ["kill", "127.0.0.1:2379", "--yes"]
    );
}

#[test]
fn there_are_keys_to_leave_and_to_be_helped_in_every_state() {
    let control_c = || Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
    for before in ["", "?", "l", "e", "x"] {
        let mut model = model();
        keys(&mut model, before);
        assert_eq!(model.update(control_c()), [Effect::Quit(Exit::Interrupted)], "after {before:?}");
        assert_eq!(model.update(Event::Told), [Effect::Quit(Exit::Interrupted)]);
    }
    assert_eq!(keys(&mut model(), "q"), [Effect::Quit(Exit::Done)]);
    assert_eq!(press(&mut model(), KeyCode::Esc), [Effect::Quit(Exit::Done)]);
    let mut model = model();
    keys(&mut model, "?");
    assert!(window(&model, 80, 24).iter().any(|line| line.contains("kill it (SIGKILL)")));
    assert_eq!(keys(&mut model, "q"), [], "any key closes the help");
    assert_eq!(model.mode, Mode::Browsing);
    let mut released = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
    released.kind = KeyEventKind::Release;
    assert_eq!(model.update(Event::Key(released)), []);
}

#[test]
fn without_a_leader_there_is_a_gap_and_a_new_leader_does_not_count_from_nothing() {
    let mut model = model();
    assert_eq!(model.writes.newest(), Some(1200));
    let mut headless = survey(Some(7));
    headless.sum.leader = None;
    looked(&mut model, headless);
    assert_eq!(model.writes.newest(), None);
    looked(&mut model, survey(Some(7)));
    assert_eq!(model.writes.newest(), None, "one look is no rate");
    assert_eq!(model.writes.iter().filter(Option::is_none).count(), 1, "one gap");
    assert_eq!(model.latency.newest(), Some(400));
}

#[test]
fn a_log_that_is_looked_back_in_stands_still_until_its_end_is_wanted() {
    let mut model = model();
    press(&mut model, KeyCode::Char('l'));
    // The title, ten lines, what was said and the keys.
    let shown = |model: &Model| window(model, 80, 13)[1..11].to_vec();
    let line = |number: usize| format!("14:03:11  INFO line {number}");
    assert_eq!((&shown(&model)[0], &shown(&model)[9]), (&line(20), &line(29)));
    press(&mut model, KeyCode::PageUp);
    assert_eq!((&shown(&model)[0], &shown(&model)[9]), (&line(10), &line(19)));
    assert!(window(&model, 80, 13)[0].contains("stands still: End follows"));
    let lines = (30..60).map(line).collect();
    model.update(Event::Logged { node: node(2379), lines });
    assert_eq!(shown(&model)[0], line(10), "it moved away under the eye");
    for _ in 0..5 {
        press(&mut model, KeyCode::PageUp);
    }
    assert_eq!(shown(&model)[0], line(0), "no further than to its beginning");
    press(&mut model, KeyCode::PageDown);
    assert_eq!(shown(&model)[0], line(10));
    press(&mut model, KeyCode::End);
    assert_eq!(shown(&model)[9], line(59), "it goes on with what came meanwhile");
    press(&mut model, KeyCode::Home);
    assert_eq!(shown(&model)[0], line(30));
    press(&mut model, KeyCode::Char('j'));
    assert!(model.log.is_empty() && model.log_below == 0, "another node's log is another log");
}
