//! The terminal while the dashboard has it. It is given back as it was on every way out, and also where the program
//! panics, which ends it without unwinding.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

use super::draw::{Palette, draw};
use super::model::Model;

/// True while the terminal is ours. The panic hook, which knows no `Screen`, asks it.
static IS_OURS: AtomicBool = AtomicBool::new(false);

/// The terminal; given back when this is dropped.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<io::Stdout>>,
    palette: Palette,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// What the system said; the terminal is then as it was.
    pub fn enter(palette: Palette) -> io::Result<Screen> {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            leave();
            hook(panic);
        }));
        enable_raw_mode()?;
        IS_OURS.store(true, Ordering::SeqCst);
        let entered = execute!(io::stdout(), EnterAlternateScreen, Hide)
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        match entered {
            Ok(terminal) => Ok(Screen { terminal, palette }),
            Err(error) => {
                leave();
                Err(error)
            }
        }
    }

    /// Draws everything; only what changed is written.
    ///
    /// # Errors
    /// What the system said.
    pub fn draw(&mut self, model: &Model) -> io::Result<()> {
        let palette = self.palette;
        self.terminal.draw(|frame| draw(model, palette, frame)).map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

/// Gives the terminal back, once. Nothing can be done where that fails: the terminal is gone then.
fn leave() {
    if IS_OURS.swap(false, Ordering::SeqCst) {
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}
