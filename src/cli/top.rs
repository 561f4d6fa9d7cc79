//! `top`: the cluster in one window, and the verbs a key away. It only looks; every act is our own program run with
//! the verb that a user would type, so there is one way to do a thing and not two.
//!
//! - `model`: what is shown, and what an event changes: pure
//! - `draw`: the model as cells of a window: pure
//! - `act`: what can be done, in words and as a command line
//! - `gather`: where events come from
//! - `screen`: the terminal, taken and given back

use std::io::{self, IsTerminal};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::view::NodeId;

use super::context::Context;
use super::exit::{Exit, Failure, Outcome};

mod act;
mod draw;
mod gather;
mod model;
mod screen;
#[cfg(test)]
mod tests;

use draw::Palette;
use gather::Keyboard;
use model::{Effect, Event, Model};
use screen::Screen;

/// Events that wait to be drawn. Full: whoever looks waits, and looks later.
const INBOX: usize = 64;

#[derive(Debug, Args)]
#[command(
    after_help = "Reads only, four times a second: every node's own answer, and the latency of one linearizable \
read of a key that does not exist. What its keys do is asked first. ? shows them."
)]
pub(super) struct Top {}

pub(super) async fn run(_: &Top, context: Context) -> Outcome {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Failure::usage("top needs a terminal; for scripts: replcluster status --watch --json"));
    }
    let mut dashboard = Dashboard::new(&context);
    let outcome = dashboard.run(context).await;
    for (_, act) in &dashboard.model.running {
        anstream::eprintln!("{act} was begun and goes on: see `replcluster events`");
    }
    outcome
}

struct Dashboard {
    model: Model,
    /// What was begun from here.
    acts: JoinSet<Event>,
    palette: Palette,
    config: std::path::PathBuf,
}

impl Dashboard {
    fn new(context: &Context) -> Dashboard {
        let coloured = anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never;
        Dashboard {
            model: Model::new(&context.config.name),
            acts: JoinSet::new(),
            palette: if coloured { Palette::Coloured } else { Palette::Plain },
            config: context.config.path.clone(),
        }
    }

    /// Until the user leaves; the terminal is given back by then.
    async fn run(&mut self, context: Context) -> Outcome {
        let (tx, mut rx) = mpsc::channel(INBOX);
        let (endpoints_tx, endpoints_rx) = watch::channel(Vec::new());
        let (followed_tx, followed_rx) = watch::channel::<Option<NodeId>>(None);
        let interrupt = context.interrupt.clone();
        let layout = context.layout.clone();
        // Before the terminal is taken: a signal from here on gives it back.
        let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(cannot)?;
        let mut screen = Screen::enter(self.palette).map_err(cannot)?;
        let _keyboard = Keyboard::read(tx.clone()).map_err(cannot)?;
        let _tasks = [
            tokio::spawn(gather::look(context, tx.clone(), endpoints_tx)),
            tokio::spawn(gather::probe(tx.clone(), endpoints_rx)),
            tokio::spawn(gather::follow(layout, tx, followed_rx)),
        ]
        .map(AbortOnDropHandle::new);
        loop {
            screen.draw(&self.model).map_err(cannot)?;
            let event = tokio::select! {
                Some(event) = rx.recv() => event,
                Some(Ok(ended)) = self.acts.join_next(), if !self.acts.is_empty() => ended,
                _ = terminate.recv() => Event::Told,
                _ = hangup.recv() => Event::Told,
                () = interrupt.cancelled() => Event::Told,
            };
            let mut next = Some(event);
            // What has come meanwhile is drawn with it.
            while let Some(event) = next {
                for effect in self.model.update(event) {
                    match effect {
                        Effect::Follow(node) => drop(followed_tx.send_replace(Some(node))),
                        Effect::Begin { number, act } => {
                            self.acts.spawn(gather::perform(self.config.clone(), number, act));
                        }
                        Effect::Quit(exit) => return Ok(exit),
                    }
                }
                next = rx.try_recv().ok();
            }
        }
    }
}

fn cannot(error: io::Error) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("cannot use the terminal: {error}\nfor scripts: replcluster status --watch --json"),
    )
}
