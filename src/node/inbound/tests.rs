//! What a connection holds while nobody takes it.

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use super::*;
use crate::node::log::{Record, encode};
use crate::node::wire::{append_body, framed};
use crate::proto::replcluster::Forward;
use crate::protocol::Mark;
use crate::register::FileRegister;

const PEER: &str = "127.0.0.1:2";

fn inbound(directory: &std::path::Path, events: Events, backlog: Budget) -> Inbound {
    let register = Arc::new(FileRegister::open(&directory.join("register")).unwrap());
    Inbound {
        address: NodeId::parse("127.0.0.1:1").unwrap(),
        cluster: Box::new(|| 7),
        level: Box::new(|| 0),
        secrets: Secrets::of(register),
        demands_proof: true,
        greeting: Room::new(1),
        greeted: Semaphore::new(1),
        refusals: Refusals::default(),
        backlog,
        snapshots: Semaphore::new(1),
        events,
        installer: snapshot::Place { directory: Arc::new(directory.to_owned()) },
    }
}

/// One entry of a megabyte.
fn large(index: u64) -> Bytes {
    let mut records = BytesMut::new();
    let (epoch, payload) = (Epoch(1), Bytes::from(vec![0; 1 << 20]));
    let record = Record { epoch, index: Index(index), commit: Index(0), origin: 1, sequence: index, payload };
    encode(&mut records, &record, 0);
    let previous = Mark { index: Index(index - 1), epoch };
    framed(epoch, Checksum(0), append_body(previous, Index(index), epoch, Index(0), None, records.freeze()))
}

#[tokio::test]
async fn entries_that_nobody_takes_are_left_with_the_peer_beyond_a_bound() {
    let directory = tempfile::tempdir().unwrap();
    let (events, mut taken) = Events::channel(4096);
    let backlog = Budget::new(8 << 20);
    let inbound = inbound(directory.path(), events, backlog.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let peer = (NodeId::parse(PEER).unwrap(), Hello { incarnation: 2, session: 3, ..Hello::default() });
    let sent = async {
        for index in 1..=100 {
            dialled.write_all(&large(index)).await.unwrap();
        }
        dialled.shutdown().await.unwrap();
    };
    let driver = async {
        // The driver takes nothing for a while: it stands in a sync, say.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!((7 << 20..=9 << 20).contains(&backlog.held()), "{} bytes are held", backlog.held());
        let (mut entries, mut most) = (0, 0);
        while let Some(reported) = taken.recv().await {
            most = most.max(backlog.held());
            entries += usize::from(matches!(reported.event, Internal::Message { .. }));
            if entries == 100 {
                break;
            }
        }
        assert!(most <= 9 << 20, "{most} bytes were held");
    };
    let served = frames(&inbound, peer, accepted, BytesMut::new());
    let (served, (), ()) = tokio::join!(served, sent, driver);
    served.unwrap();
    assert_eq!(backlog.held(), 0);
}

#[tokio::test]
async fn a_second_snapshot_at_a_time_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (events, _taken) = Events::channel(16);
    let inbound = inbound(directory.path(), events, Budget::new(1 << 20));
    let _first = inbound.snapshots.try_acquire().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let begin = crate::proto::replcluster::SnapshotBegin { index: 1, epoch: 1, chain: 0 };
    dialled.write_all(&framed(Epoch(1), Checksum(0), Body::SnapshotBegin(begin))).await.unwrap();
    let peer = (NodeId::parse(PEER).unwrap(), Hello::default());
    let ended = frames(&inbound, peer, accepted, BytesMut::new()).await;
    assert!(matches!(ended, Err(Closed::Snapshot(_))), "{ended:?}");
}

#[test]
fn a_forwarded_request_that_cannot_be_read_closes_the_connection() {
    let from = NodeId::parse("127.0.0.1:1").unwrap();
    let event = |mutation: &'static [u8]| {
        let mutations = vec![Bytes::from_static(mutation)];
        let forward = Forward { origin: 7, first_sequence: 1, mutations };
        event_of(&from, Incarnation(1), 1, (Epoch(1), Checksum(0)), Body::Forward(forward))
    };
    assert!(matches!(event(&[0xff, 0xff, 0xff]), Err(BadFrame::Request(_))));
    assert!(event(&[0x0a, 0x03, 0x0a, 0x01, b'k']).is_ok(), "a put");
}
