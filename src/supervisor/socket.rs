//! The control socket: made so that only its owner can use it, checked so that nobody else is listened to, and
//! reachable however long the path of the cluster's directory is.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

use super::wire::{LONGEST_LINE_BYTES, Reply, Request};

/// The kernel takes 107 bytes; longer paths go through a descriptor of their directory.
const LONGEST_PATH_BYTES: usize = 100;

/// A short name for a path that may be long; usable while this value lives.
struct ShortPath {
    path: PathBuf,
    _directory: Option<std::fs::File>,
}

fn short(path: &Path) -> io::Result<ShortPath> {
    if path.as_os_str().len() <= LONGEST_PATH_BYTES {
        return Ok(ShortPath { path: path.to_owned(), _directory: None });
    }
    let directory = std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?;
    let name = path.file_name().unwrap_or_default();
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok(ShortPath { path, _directory: Some(directory) })
}

/// Makes the socket, in place of one that a dead supervisor left. The caller holds the supervisor's lock, so a
/// socket that is there belongs to nobody; and has set the umask, so nobody else can connect before the mode is set.
///
/// # Errors
/// What the system said.
pub fn listen(path: &Path) -> io::Result<Listener> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(short(path)?.path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let metadata = std::fs::symlink_metadata(path)?;
    let place = Place { path: path.to_owned(), inode: metadata.ino(), device: metadata.dev() };
    Ok(Listener { listener, place })
}

/// A socket that is listened on.
#[derive(Debug)]
pub struct Listener {
    /// Takes connections.
    pub listener: UnixListener,
    /// Where they find it.
    pub place: Place,
}

/// A socket's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: PathBuf,
    inode: u64,
    device: u64,
}

impl Place {
    /// False once the file was deleted or replaced: nobody can connect any more. Where it cannot be looked at it is taken
    /// to be there.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        match std::fs::symlink_metadata(&self.path) {
            Ok(there) => there.ino() == self.inode && there.dev() == self.device,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }
}

/// True where the other end runs as the same user as we do, or as root.
#[must_use]
pub fn is_trusted(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// One conversation, from either end.
#[derive(Debug)]
pub struct Conversation {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Conversation {
    /// Talks over an accepted or connected stream.
    #[must_use]
    pub fn new(stream: UnixStream) -> Conversation {
        let (reader, writer) = stream.into_split();
        Conversation { reader: BufReader::new(reader), writer }
    }

    /// Connects to the supervisor.
    ///
    /// # Errors
    /// `NotFound` and `ConnectionRefused` mean that none listens.
    pub async fn connect(path: &Path) -> io::Result<Conversation> {
        let short = short(path)?;
        Ok(Conversation::new(UnixStream::connect(&short.path).await?))
    }

    /// Asks, and waits for one answer.
    ///
    /// # Errors
    /// What the system said; `UnexpectedEof` where the supervisor went away.
    pub async fn ask(&mut self, request: &Request) -> io::Result<Reply> {
        self.send(request).await?;
        self.next_reply().await
    }

    /// Sends one message.
    ///
    /// # Errors
    /// What the system said.
    pub async fn send<M: serde::Serialize>(&mut self, message: &M) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.writer.write_all(&line).await
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// What the system said; `UnexpectedEof` where the supervisor went away.
    pub async fn next_reply(&mut self) -> io::Result<Reply> {
        self.receive().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Waits for the next message; `None` where the other side has hung up.
    ///
    /// # Errors
    /// What the system said; `InvalidData` where the line is no message or too long.
    pub async fn receive<M: serde::de::DeserializeOwned>(&mut self) -> io::Result<Option<M>> {
        let mut line = Vec::new();
        let limit = LONGEST_LINE_BYTES as u64;
        (&mut self.reader).take(limit).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.last() != Some(&b'\n') {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the line ends too early or is too long"));
        }
        Ok(Some(serde_json::from_slice(&line)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    async fn exchange(path: &Path) {
        let Listener { listener, place } = listen(path).unwrap();
        assert!(place.is_in_place());
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            assert!(is_trusted(&stream));
            let mut conversation = Conversation::new(stream);
            assert_eq!(conversation.receive::<Request>().await.unwrap(), Some(Request::Snapshot));
            conversation.send(&Reply::Done).await.unwrap();
            assert_eq!(conversation.receive::<Request>().await.unwrap(), None);
        };
        let client = async {
            let mut conversation = Conversation::connect(path).await.unwrap();
            assert_eq!(conversation.ask(&Request::Snapshot).await.unwrap(), Reply::Done);
        };
        tokio::join!(server, client);
    }

    #[test]
    fn a_question_is_answered_over_a_short_and_a_long_path() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(90)).join("e".repeat(90));
        std::fs::create_dir_all(&deep).unwrap();
        runtime().block_on(async {
            exchange(&directory.path().join("s")).await;
            exchange(&deep.join("supervisor.sock")).await;
            // A socket that was left behind does not stand in the way of the next.
            exchange(&deep.join("supervisor.sock")).await;
        });
    }

    #[test]
    fn a_deleted_or_replaced_socket_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        runtime().block_on(async {
            let first = listen(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert!(!first.place.is_in_place());
            let second = listen(&path).unwrap();
            assert!(second.place.is_in_place() && !first.place.is_in_place());
        });
    }

    #[test]
    fn nobody_listening_is_an_error_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        runtime().block_on(async {
            assert_eq!(Conversation::connect(&path).await.unwrap_err().kind(), io::ErrorKind::NotFound);
            drop(listen(&path).unwrap());
            assert_eq!(
                Conversation::connect(&path).await.unwrap_err().kind(),
                io::ErrorKind::ConnectionRefused
            );
        });
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut &left, b"{\"do\":\"explode\"}\nhalf").unwrap();
        drop(left);
        right.set_nonblocking(true).unwrap();
        runtime().block_on(async {
            let mut conversation = Conversation::new(UnixStream::from_std(right).unwrap());
            for _ in 0..2 {
                let error = conversation.receive::<Request>().await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            }
        });
    }
}
