//! What becomes of a command whose reader leaves, as in `replcluster logs | head`: it ends quietly, with exit code 0.
//! The signal that ends other programs then is ignored by Rust's, and is left so: it would also end us for a socket
//! whose other side has gone, which is an ordinary failure here.

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Makes a line that cannot be printed because nobody reads the end of the command and not a panic. For `println` in
/// all its forms, whose only way to fail is a panic with these words.
pub(super) fn end_quietly_without_a_reader() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if is_of_a_missing_reader(panic.payload_as_str().unwrap_or_default()) {
            std::process::exit(0);
        }
        print(panic);
    }));
}

fn is_of_a_missing_reader(words: &str) -> bool {
    words.starts_with("failed printing to std") && words.contains("Broken pipe")
}

/// True where nobody reads what is printed any more. A command that prints rarely asks, and need not wait for a line.
pub(super) fn reader_left() -> bool {
    let stdout = std::io::stdout();
    let mut asked = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    // What cannot be asked is found out with the next line.
    poll(&mut asked, PollTimeout::ZERO).is_ok()
        && asked[0].revents().is_some_and(|said| said.contains(PollFlags::POLLERR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_pipe_is_a_quiet_end() {
        assert!(is_of_a_missing_reader("failed printing to stdout: Broken pipe (os error 32)"));
        assert!(!is_of_a_missing_reader("failed printing to stdout: No space left on device (os error 28)"));
        assert!(!is_of_a_missing_reader("Broken pipe"));
    }
}
