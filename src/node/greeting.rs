//! How a connection between two nodes begins. Where the cluster has a secret, each side shows the other that it knows it,
//! and until then nothing that was said counts (R38).
//!
//! ```text
//!   dialler                                                        listener
//!     MAGIC  Hello {…, nonce, proof over the Hello}         ─────▶   a wrong proof ends it
//!   ◀─────  Challenge {nonce, proof over Hello and nonce}            only where the cluster has a secret
//!     Answer {proof over Hello and the listener's nonce}    ─────▶   a wrong proof ends it
//!     frames                                                ─────▶
//! ```
//!
//! *What a stranger can do with what it heard.* A Hello names both addresses, incarnation and session, but one that was
//! recorded could be said again, as long as its sender lives: whoever takes the port of a node that is down hears the
//! Hellos of all others. The listener's nonce makes the rest of the conversation new each time, so a recorded one ends
//! at the Answer. And the dialler's nonce makes the listener show that it knows the secret before it gets a single entry
//! or row. What remains: one who can change what passes between two nodes after the greeting. On the loopback interface
//! only root can, who can read the secret as well.
//!
//! A node of an older program says a Hello without proof. It is listened to only while the cluster has no secret, and
//! when one is made its connection is ended.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::inbound::Closed;
use super::wire::{BadFrame, MAGIC, put, take_bytes};
use crate::proto::replcluster::{Answer, Challenge, Hello};
use crate::register::Register;
use crate::register::secret::{Proof, Secret};

/// How long either side may take.
pub(super) const GREETING_MAX: Duration = Duration::from_secs(5);
/// No message of a greeting is longer, in bytes.
const MESSAGE_MAX: usize = 4096;
/// What stands before the proof at the end of a Hello: the field's tag and length.
const PROOF_HEAD: [u8; 2] = [15 << 3 | 2, 32];
/// What each proof is over, so that none can stand for another.
const OF_HELLO: &[u8] = b"replcluster hello";
const OF_CHALLENGE: &[u8] = b"replcluster challenge";
const OF_ANSWER: &[u8] = b"replcluster answer";

/// The secret of the cluster, as this process knows it: read from the register until there is one, and kept from then on.
pub struct Secrets {
    register: Arc<dyn Register>,
    known: OnceLock<Secret>,
}

impl Secrets {
    /// Those of the cluster to which the register belongs.
    pub(super) fn of(register: Arc<dyn Register>) -> Arc<Secrets> {
        Arc::new(Secrets { register, known: OnceLock::new() })
    }

    /// `None` where there is none yet. The first time it is read on a thread that is made for waiting.
    async fn get(&self) -> io::Result<Option<Secret>> {
        if let Some(secret) = self.known.get() {
            return Ok(Some(secret.clone()));
        }
        let register = self.register.clone();
        let read = tokio::task::spawn_blocking(move || register.secret()).await?;
        let secret = read.map_err(io::Error::other)?;
        Ok(secret.map(|secret| self.known.get_or_init(|| secret).clone()))
    }

    /// Resolves when the cluster has a secret.
    pub(super) async fn appears(&self) {
        let mut times = tokio::time::interval(Duration::from_secs(1));
        loop {
            times.tick().await;
            if matches!(self.get().await, Ok(Some(_))) {
                return;
            }
        }
    }
}

/// The dialler's side: returns when frames may be sent.
///
/// # Errors
/// What the network said, or that the other side does not know the secret.
pub(super) async fn greet(stream: &mut TcpStream, hello: &Hello, secrets: &Secrets) -> io::Result<()> {
    let Some(secret) = secrets.get().await? else {
        return stream.write_all(&with_magic(&hello.encode_to_vec())).await;
    };
    let said = signed(hello, &secret);
    stream.write_all(&with_magic(&said)).await?;
    let answered = async {
        let mut buffer = BytesMut::new();
        let challenge = receive(stream, &mut buffer).await.map_err(io::Error::other)?;
        let challenge = Challenge::decode(challenge)?;
        if !secret.verify(&[OF_CHALLENGE, &said, &challenge.nonce], &challenge.proof) {
            let text = format!("{} does not know the secret of the cluster", hello.to);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        let proof = secret.prove(&[OF_ANSWER, &said, &challenge.nonce]);
        let mut answer = BytesMut::new();
        put(&mut answer, &Answer { proof: Bytes::copy_from_slice(&proof) });
        stream.write_all(&answer).await
    };
    tokio::time::timeout(GREETING_MAX, answered).await?
}

/// The bytes of a Hello with a nonce, and a proof over all of it that comes before.
pub(super) fn signed(hello: &Hello, secret: &Secret) -> Vec<u8> {
    let nonce: [u8; 16] = rand::random();
    let hello = Hello { nonce: Bytes::copy_from_slice(&nonce), proof: Bytes::new(), ..hello.clone() };
    let mut said = hello.encode_to_vec();
    let proof = secret.prove(&[OF_HELLO, &said]);
    said.extend(PROOF_HEAD);
    said.extend(proof);
    said
}

/// The magic, and a message with its length before it.
pub(super) fn with_magic(message: &[u8]) -> Bytes {
    let mut buffer = BytesMut::from(&MAGIC[..]);
    buffer.put_u32_le(u32::try_from(message.len()).expect("a greeting is short"));
    buffer.put_slice(message);
    buffer.freeze()
}

/// The bytes of the next message.
async fn receive(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<Bytes, Closed> {
    loop {
        if let Some(message) = take_bytes(buffer, MESSAGE_MAX)? {
            return Ok(message);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(Closed::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// What a peer said of itself.
pub(super) struct Greeted {
    /// What it said.
    pub(super) hello: Hello,
    /// It has shown that it belongs to the cluster.
    pub(super) proved: bool,
}

/// The listener's side. `None` where the connection ended before anything was said.
pub(super) async fn listen(
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
    secrets: &Secrets,
    demands_proof: bool,
) -> Result<Option<Greeted>, Closed> {
    while buffer.len() < MAGIC.len() {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    if buffer[..MAGIC.len()] != MAGIC[..] {
        return Err(Closed::Stranger("not a peer's greeting".to_owned()));
    }
    let _ = buffer.split_to(MAGIC.len());
    let said = receive(stream, buffer).await?;
    let hello = Hello::decode(said.clone()).map_err(BadFrame::from)?;
    let secret = match secrets.get().await? {
        Some(secret) if demands_proof => secret,
        Some(_) => return Ok(Some(Greeted { hello, proved: true })),
        None if hello.proof.is_empty() => return Ok(Some(Greeted { hello, proved: false })),
        None => {
            let text = format!("{} knows a secret, and the register of this node has none", hello.from);
            return Err(Closed::Stranger(text));
        }
    };
    let shown = unsigned(&said).is_some_and(|(rest, proof)| secret.verify(&[OF_HELLO, rest], proof));
    if !shown {
        let text = format!("{} does not know the secret of the cluster", hello.from);
        return Err(Closed::Stranger(text));
    }
    let nonce: [u8; 16] = rand::random();
    let proof: Proof = secret.prove(&[OF_CHALLENGE, &said, &nonce]);
    let mut challenge = BytesMut::new();
    let (nonce, proof) = (Bytes::copy_from_slice(&nonce), Bytes::copy_from_slice(&proof));
    put(&mut challenge, &Challenge { nonce: nonce.clone(), proof });
    stream.write_all(&challenge).await?;
    let answer = Answer::decode(receive(stream, buffer).await?).map_err(BadFrame::from)?;
    if !secret.verify(&[OF_ANSWER, &said, &nonce], &answer.proof) {
        let text = format!("{} said again what was said before", hello.from);
        return Err(Closed::Stranger(text));
    }
    Ok(Some(Greeted { hello, proved: true }))
}

/// A Hello's bytes without the proof at their end, and the proof.
fn unsigned(said: &[u8]) -> Option<(&[u8], &[u8])> {
    let (rest, proof) = said.split_at_checked(said.len().checked_sub(32)?)?;
    Some((rest.strip_suffix(&PROOF_HEAD)?, proof))
}

#[cfg(test)]
mod tests;
