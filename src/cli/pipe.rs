//! What becomes of a command whose reader leaves, as in `replcluster logs | head`: it ends quietly, with exit code 0. One
//! whose output cannot be written for another reason, such as a full disk, says so and ends with exit code 1.
//! The signal that ends other programs then is ignored by Rust's, and is left so: it would also end us for a socket
//! whose other side has gone, which is an ordinary failure here.

use std::io::{ErrorKind, Write as _};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::oneshot;

use super::exit::{Exit, Failure};

/// Makes a line that cannot be printed because nobody reads an end of the command and not a panic: `anstream`'s macros
/// pass over it, the standard library's have no other way to fail.
pub(super) fn end_quietly_without_a_reader() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let words = panic.payload_as_str().unwrap_or_default();
        if is_of_a_missing_reader(words) {
            std::process::exit(0);
        }
        if let Some(why) = is_of_a_full_place(words) {
            // Where not even this can be written, the exit code has to do.
            let _ = writeln!(
                std::io::stderr(),
                "error: cannot print: {why}\n  make room where the output goes; what was asked for may be done"
            );
            std::process::exit(i32::from(Exit::Failed as u8));
        }
        print(panic);
    }));
}

/// Says how far long work is. Where nobody can hear it the work goes on and comes to its own end: a verb that ended
/// here would leave behind what it has started.
pub(super) fn tell(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Prints what was found. A reader that went away is no failure.
///
/// # Errors
/// Where the output has no room.
pub(super) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, format!("cannot print: {error}\nmake room where the output goes")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_of_a_missing_reader(words: &str) -> bool {
    words.starts_with("failed printing to std") && words.contains("Broken pipe")
}

/// Why a line could not be printed, where its reader is not what is missing.
fn is_of_a_full_place(words: &str) -> Option<&str> {
    words.strip_prefix("failed printing to std")?.split_once(": ").map(|(_, why)| why)
}

/// Returns when nobody reads what is printed any more: a command that follows something would go on for ever, and
/// perhaps has no line to print by which to notice. Never returns where output goes to a terminal or a file.
pub(super) async fn reader_left() {
    let (tell, told) = oneshot::channel();
    // It waits in the kernel and costs nothing; it is not owned, because only the end of the process ends it.
    let waiting = std::thread::Builder::new().name("reader".to_owned()).spawn(move || {
        let stdout = std::io::stdout();
        let mut asked = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        let left = loop {
            match poll(&mut asked, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(_) => break false,
                Ok(_) => break asked[0].revents().is_some_and(|said| said.contains(PollFlags::POLLERR)),
            }
        };
        if left {
            // Whoever does not wait any more has ended the command for another reason.
            let _ = tell.send(());
        }
    });
    if waiting.is_err() || told.await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_pipe_is_a_quiet_end() {
        assert!(is_of_a_missing_reader("failed printing to stdout: Broken pipe (os error 32)"));
        assert!(!is_of_a_missing_reader("failed printing to stdout: No space left on device (os error 28)"));
        assert!(!is_of_a_missing_reader("Broken pipe"));
        let why = is_of_a_full_place("failed printing to stdout: No space left on device (os error 28)");
        assert_eq!(why, Some("No space left on device (os error 28)"));
        assert_eq!(is_of_a_full_place("an assertion failed: x"), None);
    }
}
