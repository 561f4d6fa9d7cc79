//! Clients that say to whom they speak in a way that is none: `http://127.0.0.1:2379` (etcd's clients up to 3.4, and so
//! `etcdctl endpoint status --cluster`) or `#initially=[…]` (3.5.0 to 3.5.9 with several endpoints; etcd issue 13192).
//! Servers written in Go do not look at it. The HTTP/2 library under us resets every such request before anybody here
//! could see it, and has no switch for that; so what comes from a client is looked at on its way there.
//!
//! **What is changed: one byte.** In the compressed headers (RFC 7541) a new `:authority` begins with a byte that says
//! "entry 1 of the static table is the name; remember it". Where the value is no authority the byte becomes that of entry
//! 55, `set-cookie`: a name of the same length, so that both sides' tables stay of the same size and in step, and a
//! header that nobody here reads. Later requests that refer to the remembered entry need no change. No length changes,
//! nothing is decoded: the two ways to be wrong are told by their first characters, plain or in Huffman's code.
//!
//! **What is left alone.** A connection whose first request is right is not looked at any further: a client says the same
//! on all of a connection. So is whatever does not look like HTTP/2, or is larger than we allow: the library refuses it.
//! And an authority that is not to be remembered, or that is split between two frames: no such client is known.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What every connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame's head.
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
/// Most bytes that are waited for before they are passed on.
const FRAME_MAX: usize = super::serve::FRAME_BYTES as usize;
/// Bytes read from the connection at a time, while it is looked at.
const READ_BYTES: usize = 16 << 10;

/// A literal to be remembered whose name is entry 1 of the static table: `:authority`.
const AUTHORITY: u8 = 0x40 | 1;
/// The same with entry 55: `set-cookie`.
const SET_COOKIE: u8 = 0x40 | 55;

/// A connection from a client, with its requests put right.
#[derive(Debug)]
pub(super) struct Forgiving<S> {
    inner: S,
    /// `None` once nothing is looked at any more.
    watch: Option<Watch>,
    /// Read and not passed on yet.
    buffer: BytesMut,
}

impl<S> Forgiving<S> {
    /// Looks at the connection from its beginning; `read` is what was read of it already.
    pub(super) fn new(inner: S, read: BytesMut) -> Forgiving<S> {
        Forgiving { inner, watch: Some(Watch::default()), buffer: read }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Forgiving<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let ready = match &mut this.watch {
                Some(watch) => watch.look(&mut this.buffer),
                None => Look::Over,
            };
            let passed_on = match ready {
                Look::Pass(count) => count,
                Look::Over => {
                    this.watch = None;
                    this.buffer.len()
                }
            };
            if passed_on > 0 {
                let count = passed_on.min(out.remaining());
                out.put_slice(&this.buffer[..count]);
                this.buffer.advance(count);
                if let Some(watch) = &mut this.watch {
                    watch.passed_on(count);
                }
                return Poll::Ready(Ok(()));
            }
            if this.watch.is_none() {
                this.buffer = BytesMut::new();
                return Pin::new(&mut this.inner).poll_read(context, out);
            }
            this.buffer.reserve(READ_BYTES);
            let read = tokio_util::io::poll_read_buf(Pin::new(&mut this.inner), context, &mut this.buffer);
            if ready!(read)? == 0 {
                // The client has said all: what is left is the library's to judge.
                this.watch = None;
                if this.buffer.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Forgiving<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// What may be done with what was read.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// So many bytes from its beginning may be passed on; 0: more must be read first.
    Pass(usize),
    /// All of it, and all that comes: nothing more is looked at.
    Over,
}

/// Where in the connection the next byte to be passed on is.
#[derive(Debug, Default)]
struct Watch {
    begun: bool,
    /// Bytes that were looked at already.
    looked_at: usize,
    /// This client has been wrong: it will be again.
    is_wrong: bool,
}

impl Watch {
    fn passed_on(&mut self, count: usize) {
        self.looked_at -= count;
    }

    /// Looks at the next frame, if it is not passed on yet, and puts it right.
    fn look(&mut self, buffer: &mut [u8]) -> Look {
        // Of a frame that is not looked at more may be known than is here.
        if self.looked_at > 0 {
            return Look::Pass(self.looked_at.min(buffer.len()));
        }
        if !self.begun {
            let here = buffer.len().min(PREFACE.len());
            if buffer[..here] != PREFACE[..here] {
                return Look::Over;
            }
            if here < PREFACE.len() {
                return Look::Pass(0);
            }
            self.begun = true;
            self.looked_at = PREFACE.len();
            return Look::Pass(self.looked_at);
        }
        let Some((head, rest)) = buffer.split_at_mut_checked(HEAD) else { return Look::Pass(0) };
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if length > FRAME_MAX {
            return Look::Over;
        }
        if head[3] == HEADERS {
            let Some(payload) = rest.get_mut(..length) else { return Look::Pass(0) };
            let put_right = fragment(head[4], payload).is_some_and(forgive);
            if !put_right && !self.is_wrong {
                return Look::Over;
            }
            self.is_wrong = true;
        }
        self.looked_at = HEAD + length;
        Look::Pass(self.looked_at.min(buffer.len()))
    }
}

/// The compressed headers in the payload of a frame: without padding and priority. `None` where it makes no sense.
fn fragment(flags: u8, payload: &mut [u8]) -> Option<&mut [u8]> {
    let padding = if flags & PADDED == 0 { 0 } else { usize::from(*payload.first()?) };
    let before = usize::from(flags & PADDED != 0) + if flags & PRIORITY == 0 { 0 } else { 5 };
    let end = payload.len().checked_sub(padding)?;
    payload.get_mut(before..end)
}

/// Looks for a wrong authority that is to be remembered, and gives it another name. True where there was one.
fn forgive(block: &mut [u8]) -> bool {
    let Some(at) = find(block) else { return false };
    block[at] = SET_COOKIE;
    true
}

/// Where a wrong authority begins.
fn find(block: &[u8]) -> Option<usize> {
    let mut rest = block;
    while let Some(first) = rest.first().copied() {
        let at = block.len() - rest.len();
        // The four kinds of a field, and a change of the table's size (RFC 7541, section 6).
        let (prefix, is_literal) = match first {
            0x80.. => (7, false),
            0x40..=0x7f => (6, true),
            0x20..=0x3f => (5, false),
            0x00..=0x1f => (4, true),
        };
        let name = integer(&mut rest, prefix)?;
        if is_literal {
            if name == 0 {
                string(&mut rest)?;
            }
            let value = string(&mut rest)?;
            if first == AUTHORITY && is_wrong(&value) {
                return Some(at);
            }
        }
    }
    None
}

/// A string as it stands there.
struct Text<'a> {
    bytes: &'a [u8],
    is_huffman: bool,
}

/// Takes an integer whose first bits are the last `prefix` bits of the first byte (RFC 7541, section 5.1). `None` where
/// it ends too early or is larger than any length here.
fn integer(rest: &mut &[u8], prefix: u32) -> Option<usize> {
    let mask = (1_u8 << prefix) - 1;
    let mut value = usize::from(rest.split_off_first()? & mask);
    if value < usize::from(mask) {
        return Some(value);
    }
    for shift in [0, 7, 14] {
        let byte = rest.split_off_first()?;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Takes a string (RFC 7541, section 5.2).
fn string<'a>(rest: &mut &'a [u8]) -> Option<Text<'a>> {
    let is_huffman = rest.first()? & 0x80 != 0;
    let length = integer(rest, 7)?;
    Some(Text { bytes: rest.split_off(..length)?, is_huffman })
}

/// What wrong authorities begin with: plain, and the bits of Huffman's code for it (RFC 7541, appendix B).
const WRONG: [(&[u8], &str); 3] = [
    (b"http:/", "100111 01001 01001 101011 1011100 011000"),
    (b"https:/", "100111 01001 01001 101011 01000 1011100 011000"),
    (b"#", "111111111010"),
];

fn is_wrong(value: &Text<'_>) -> bool {
    WRONG.iter().any(|(plain, code)| {
        if value.is_huffman { begins_with_bits(value.bytes, code) } else { value.bytes.starts_with(plain) }
    })
}

fn begins_with_bits(bytes: &[u8], code: &str) -> bool {
    let wanted = code.bytes().filter(|letter| *letter != b' ');
    let bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
    wanted.clone().count() <= bytes.len() * 8 && wanted.zip(bits).all(|(letter, bit)| letter == b'0' + bit)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::unconstrained;

    /// Codes of the characters that the tests need (RFC 7541, appendix B).
    const CODES: [(char, &str); 12] = [
        ('h', "100111"),
        ('t', "01001"),
        ('p', "101011"),
        ('s', "01000"),
        (':', "1011100"),
        ('/', "011000"),
        ('0', "00000"),
        ('1', "00001"),
        ('2', "00010"),
        ('.', "010111"),
        ('#', "111111111010"),
        ('i', "00110"),
    ];

    fn huffman(text: &str) -> Vec<u8> {
        let code = |letter| CODES.iter().find(|(of, _)| *of == letter).expect("a code").1;
        let mut bits: Vec<u8> = text.chars().flat_map(|letter| code(letter).bytes()).collect();
        bits.resize(bits.len().next_multiple_of(8), b'1');
        bits.chunks(8).map(|byte| byte.iter().fold(0, |byte, bit| (byte << 1) | (bit - b'0'))).collect()
    }

    /// A field that is to be remembered, as an index of its name and a value.
    fn field(name: u8, value: &str, coded: bool) -> Vec<u8> {
        let bytes = if coded { huffman(value) } else { value.as_bytes().to_vec() };
        let length = u8::try_from(bytes.len()).unwrap();
        let mut field = vec![0x40 | name];
        match length {
            0..127 => field.push((u8::from(coded) << 7) | length),
            127.. => field.extend([(u8::from(coded) << 7) | 127, length - 127]),
        }
        field.extend(bytes);
        field
    }

    /// `:method: POST`, `:scheme: http`, a path of some length, then what is given.
    fn block(rest: &[Vec<u8>]) -> Vec<u8> {
        let mut block = vec![0x83, 0x86];
        block.extend(field(4, &"/p".repeat(70), false));
        block.extend(rest.concat());
        block
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.extend(payload);
        frame
    }

    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        [PREFACE, &frame(4, 0, &[]), &frames.concat()].concat()
    }

    /// What comes out where the bytes come in as they are cut, and how much of it is still looked at.
    async fn through(bytes: &[u8], cut: usize) -> (Vec<u8>, bool) {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut server = Forgiving::new(server, BytesMut::new());
        let mut out = Vec::new();
        let mut some = [0; 50];
        for part in [&bytes[..cut], &bytes[cut..]] {
            client.write_all(part).await.unwrap();
            // Everything that may be passed on, before more comes.
            while let Some(count) = unconstrained(server.read(&mut some)).now_or_never() {
                out.extend(&some[..count.unwrap()]);
            }
        }
        let looks = server.watch.is_some();
        drop(client);
        server.read_to_end(&mut out).await.unwrap();
        (out, looks)
    }

    async fn comes_out(frames: &[Vec<u8>], wanted: &[Vec<u8>], looks_on: bool) {
        let (bytes, wanted) = (connection(frames), connection(wanted));
        for cut in 0..=bytes.len() {
            let (out, looks) = through(&bytes, cut).await;
            assert!(out == wanted, "cut at {cut}: {out:x?} and not {wanted:x?}");
            assert_eq!(looks, looks_on, "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn what_is_no_authority_gets_another_name_in_every_request_of_the_connection() {
        for (value, coded) in [
            ("http://127.0.0.1:2379", false),
            ("https://h:1", false),
            ("#initially=[127.0.0.1:2379;127.0.0.1:2380]", false),
            ("http://10.0.0.1:2", true),
            ("https://10.0.0.1:2", true),
            ("#ii", true),
        ] {
            let asked = |name: u8| frame(1, 4, &block(&[field(name, value, coded), field(31, "x", false)]));
            let data = frame(0, 1, &[7; 300]);
            comes_out(
                &[asked(1), data.clone(), asked(1), data.clone()],
                &[asked(55), data.clone(), asked(55), data],
                true,
            )
            .await;
        }
    }

    #[tokio::test]
    async fn padding_priority_and_later_requests_without_a_new_authority_are_understood() {
        let asked = |name: u8| {
            let block = block(&[field(name, "http://h:1", false)]);
            frame(1, 4 | PADDED | PRIORITY, &[&[3, 0, 0, 0, 0, 9][..], &block, &[0; 3]].concat())
        };
        let later = frame(1, 5, &[0x83, 0x86, 0xc0, 0xbf, 0x20]);
        comes_out(&[asked(1), later.clone()], &[asked(55), later], true).await;
    }

    #[tokio::test]
    async fn a_connection_that_is_right_or_not_understood_is_passed_on_as_it_is() {
        for (value, coded) in
            [("127.0.0.1:2379", false), ("10.0.0.1:2", true), ("http", false), ("http:2", true)]
        {
            let asked = frame(1, 4, &block(&[field(1, value, coded)]));
            let wrong = frame(1, 4, &block(&[field(1, "http://h:1", false)]));
            comes_out(&[asked.clone(), wrong.clone()], &[asked, wrong], false).await;
        }
        for block in
            [vec![0x41], vec![0x41, 0x7f, 0xff, 0xff, 0xff, 0xff], vec![0x41, 0x0a, b'h'], vec![0xff]]
        {
            let asked = frame(1, 4, &block);
            comes_out(std::slice::from_ref(&asked), std::slice::from_ref(&asked), false).await;
        }
        let too_much_padding = frame(1, 4 | PADDED, &[9, 0x83]);
        comes_out(std::slice::from_ref(&too_much_padding), std::slice::from_ref(&too_much_padding), false)
            .await;
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nXX", b""] {
            for cut in 0..=bytes.len() {
                assert_eq!(through(bytes, cut).await.0, bytes);
            }
        }
        let mut too_large = connection(&[frame(1, 4, &[0; 20])]);
        let head = PREFACE.len() + HEAD;
        too_large[head..head + 3].copy_from_slice(&[0xff, 0xff, 0xff]);
        assert_eq!(through(&too_large, 60).await, (too_large, false));
    }

    #[tokio::test]
    async fn whatever_comes_nothing_else_is_changed_and_nothing_is_lost() {
        use rand::{RngExt as _, SeedableRng as _};
        for seed in 0..2000 {
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let mut frames = Vec::new();
            for _ in 0..random.random_range(1..6) {
                let mut payload: Vec<u8> = (0..random.random_range(0..60)).map(|_| random.random()).collect();
                if random.random() {
                    let at = random.random_range(0..=payload.len());
                    payload.splice(at..at, field(1, "http://h:1", false));
                }
                let kind = *[0, HEADERS, HEADERS, HEADERS, 9].get(random.random_range(0..5)).unwrap();
                frames.push(frame(kind, random.random(), &payload));
            }
            let mut bytes = connection(&frames);
            bytes.truncate(random.random_range(0..=bytes.len()));
            let (out, _) = through(&bytes, random.random_range(0..=bytes.len())).await;
            let same = |(came, went): (&u8, &u8)| came == went || (*came, *went) == (AUTHORITY, SET_COOKIE);
            assert!(
                out.len() == bytes.len() && bytes.iter().zip(&out).all(same),
                "seed {seed}: {bytes:x?} became {out:x?}"
            );
        }
    }
}
