//! `top`: the cluster in one window, and the verbs a key away. It only looks; every act is our own program run with
//! the verb that a user would type, so there is one way to do a thing and not two.
//!
//! - `model`: what is shown, and what an event changes: pure
//! - `draw`: the model as cells of a window: pure
//! - `act`: what can be done, in words and as a command line
//! - `gather`: where events come from
//! - `screen`: the terminal, taken and given back

use std::future::Future;
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
        return Err(Failure::usage("top needs a terminal\nfor scripts: `replcluster status --watch --json`"));
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
        let told = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
                () = interrupt.cancelled() => {}
            }
        };
        let outcome = self.drive(&mut screen, &mut rx, &followed_tx, told).await;
        // Whoever waits to send something, such as the keyboard's thread, need not wait any more.
        rx.close();
        outcome
    }

    /// Draws, waits, takes in: until something says that it is over.
    async fn drive(
        &mut self,
        screen: &mut Screen,
        rx: &mut mpsc::Receiver<Event>,
        followed: &watch::Sender<Option<NodeId>>,
        told: impl Future<Output = ()>,
    ) -> Outcome {
        let mut told = std::pin::pin!(told);
        loop {
            screen.draw(&self.model).map_err(cannot)?;
            let event = tokio::select! {
                Some(event) = rx.recv() => event,
                Some(Ok(ended)) = self.acts.join_next(), if !self.acts.is_empty() => ended,
                () = &mut told => Event::Told,
            };
            let mut next = Some(event);
            // What has come meanwhile is drawn with it.
            while let Some(event) = next {
                for effect in self.model.update(event) {
                    if let Some(exit) = self.carry_out(effect, followed) {
                        return Ok(exit);
                    }
                }
                next = rx.try_recv().ok();
            }
        }
    }

    fn carry_out(&mut self, effect: Effect, followed: &watch::Sender<Option<NodeId>>) -> Option<Exit> {
        match effect {
            Effect::Follow(node) => drop(followed.send_replace(Some(node))),
            Effect::Begin { number, act } => match gather::begin(&self.config, act.clone()) {
                Ok(begun) => drop(self.acts.spawn(gather::ended(number, begun))),
                Err(error) => {
                    let said = format!("{act}: cannot be run: {error}");
                    self.model.update(Event::Ended { number, done: false, said });
                }
            },
            Effect::Quit(exit) => return Some(exit),
        }
        None
    }
}

fn cannot(error: io::Error) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("cannot use the terminal: {error}\nfor scripts: replcluster status --watch --json"),
    )
}
