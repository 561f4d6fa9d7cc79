//! Greetings over real connections, and a node that meets a peer which is none.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message as _;
use tokio::net::TcpListener;

use super::*;
use crate::node::directory::DataDirectory;
use crate::node::wire::{body_of, framed};
use crate::node::{self, Handle, PeerConnection, Running, Settings, Start};
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::replcluster::{Mutation, mutation};
use crate::protocol::Message;
use crate::register::{DeathWatch, FileRegister, Holder, NodeLock};
use crate::rules::{Rule, without};
use crate::view::{Checksum, ClusterId, Epoch, Incarnation, Index, NodeId, View};

const PATIENCE: Duration = Duration::from_secs(30);

fn hello() -> Hello {
    Hello {
        cluster_id: 7,
        from: "127.0.0.1:1".to_owned(),
        incarnation: 3,
        to: "127.0.0.1:2".to_owned(),
        format: super::super::wire::FORMAT,
        session: 9,
        ..Hello::default()
    }
}

/// A register of its own, with a secret or as an older program has left it.
fn register(directory: &Path, has_secret: bool) -> Arc<dyn Register> {
    let path = directory.join(format!("register-{has_secret}-{}", rand::random::<u32>()));
    if !has_secret {
        std::fs::create_dir(&path).unwrap();
    }
    Arc::new(FileRegister::open(&path).unwrap())
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (dialled, listener.accept().await.unwrap().0)
}

/// What each side makes of a greeting.
async fn meet(
    dialler: &Arc<dyn Register>,
    listener: &Arc<dyn Register>,
) -> (io::Result<()>, Result<Option<Greeted>, Closed>) {
    let (mut dialled, mut accepted) = pair().await;
    let (dialler, listener) = (Secrets::of(dialler.clone()), Secrets::of(listener.clone()));
    let heard = async {
        let mut buffer = BytesMut::new();
        let heard = listen(&mut accepted, &mut buffer, &listener, true).await;
        drop(accepted);
        heard
    };
    let hello = hello();
    tokio::join!(greet(&mut dialled, &hello, &dialler), heard)
}

#[tokio::test]
async fn nodes_of_one_cluster_know_each_other_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, other) = (register(directory.path(), true), register(directory.path(), true));
    let older = register(directory.path(), false);
    assert!(older.secret().unwrap().is_none());

    let (dialled, heard) = meet(&ours, &ours).await;
    dialled.unwrap();
    let greeted = heard.unwrap().unwrap();
    assert!(greeted.proved && greeted.hello.from == "127.0.0.1:1" && greeted.hello.session == 9);

    let (dialled, heard) = meet(&other, &ours).await;
    assert!(dialled.is_err() && matches!(heard, Err(Closed::Stranger(_))), "{dialled:?}");
    // Without a secret, as an older program: listened to only where there is none.
    let (dialled, heard) = meet(&older, &ours).await;
    assert!(dialled.is_ok() && matches!(heard, Err(Closed::Stranger(_))));
    let (dialled, heard) = meet(&older, &older).await;
    assert!(dialled.is_ok() && !heard.unwrap().unwrap().proved);
    let (_, heard) = meet(&ours, &older).await;
    assert!(matches!(heard, Err(Closed::Stranger(_))));

    let known = Secrets::of(older.clone());
    assert!(known.get().await.unwrap().is_none());
    older.ensure_secret().unwrap();
    let (dialled, heard) = meet(&older, &older).await;
    assert!(dialled.is_ok() && heard.unwrap().unwrap().proved);
    tokio::time::timeout(PATIENCE, known.appears()).await.expect("a secret that is made later is noticed");
}

#[tokio::test]
async fn a_recorded_greeting_said_again_opens_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Secrets::of(register(directory.path(), true));
    // Recorded by a stranger that has the port of a node that is down.
    let (mut dialled, mut recorder) = pair().await;
    let hello = hello();
    let mut recorded = vec![0; 4096];
    let (greeted, count) = tokio::join!(
        tokio::time::timeout(Duration::from_millis(200), greet(&mut dialled, &hello, &ours)),
        recorder.read(&mut recorded)
    );
    assert!(greeted.is_err(), "nothing more is said to one that shows nothing");
    recorded.truncate(count.unwrap());

    let (mut dialled, mut accepted) = pair().await;
    dialled.write_all(&recorded).await.unwrap();
    // What a stranger can answer to the challenge: nothing, or a proof from another conversation.
    let mut answer = BytesMut::new();
    put(&mut answer, &Answer { proof: Bytes::from_static(&[7; 32]) });
    dialled.write_all(&answer).await.unwrap();
    let heard = listen(&mut accepted, &mut BytesMut::new(), &ours, true).await;
    assert!(matches!(&heard, Err(Closed::Stranger(why)) if why.contains("again")), "{:?}", heard.err());
}

#[test]
fn every_byte_of_a_hello_is_under_the_proof() {
    let directory = tempfile::tempdir().unwrap();
    let secret = register(directory.path(), true).secret().unwrap().unwrap();
    let said = signed(&hello(), &secret);
    let holds =
        |bytes: &[u8]| unsigned(bytes).is_some_and(|(rest, proof)| secret.verify(&[OF_HELLO, rest], proof));
    assert!(holds(&said));
    assert_eq!(Hello::decode(&said[..]).unwrap().proof.len(), 32, "it is a field like any other");
    for at in 0..said.len() {
        let mut forged = said.clone();
        forged[at] ^= 1;
        assert!(!holds(&forged), "byte {at}");
    }
    assert!(!holds(&said[..said.len() - 1]) && !holds(b""));
}

/// A node that leads a set of two, whose other node is this test: it holds the lock of one that lives, and knows nothing.
struct Scene {
    handle: Handle,
    peers: tokio::sync::mpsc::Sender<PeerConnection>,
    ended: tokio::sync::oneshot::Receiver<node::Ended>,
    register: Arc<FileRegister>,
    other: NodeId,
    _lock: NodeLock,
    _directory: tempfile::TempDir,
}

fn scene() -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("register");
    let address = NodeId::parse("127.0.0.1:21590").unwrap();
    let other = NodeId::parse("127.0.0.1:21591").unwrap();
    let data = DataDirectory::open(&directory.path().join("data"), &address).unwrap();
    let register = Arc::new(FileRegister::open(&path).unwrap());
    let both = BTreeMap::from([(address.clone(), data.incarnation()), (other.clone(), Incarnation(77))]);
    let view = View {
        cluster: ClusterId(7),
        epoch: Epoch(1),
        leader: address.clone(),
        led_since: Epoch(1),
        in_sync: both.clone(),
        members: both,
        floor: Index(0),
        recovered: Epoch(0),
        previous: Checksum(0),
    };
    register.swap(None, &view).unwrap();
    let holder = Holder::this_process(&other, directory.path()).unwrap();
    let lock = NodeLock::take(&path, &other, &holder).unwrap();
    let start = Start {
        address: address.clone(),
        directory: data,
        register: register.clone(),
        watch: Box::new(move |tell| DeathWatch::start(&path, tell)),
        settings: Settings {
            cluster_name: "test".to_owned(),
            max_request_bytes: 64 * 1024,
            max_txn_operations: 128,
            nonce: String::new(),
            min_in_sync: 1,
        },
        heartbeat_interval: Duration::from_millis(50),
        failure_timeout: Duration::from_millis(500),
        handback_after: None,
        create: false,
        held: None,
        acknowledge_early: false,
        log_keep_bytes: 256 << 20,
        space_reserve_bytes: 0,
        skips: crate::skips::Skips::default(),
    };
    let Running { handle, peers, ended, .. } = node::start(start).unwrap();
    Scene { handle, peers, ended, register, other, _lock: lock, _directory: directory }
}

impl Scene {
    /// Ends the node before its directory is deleted: one that cannot write ends the whole process.
    async fn end(self) {
        self.handle.shutdown().await;
        println!("the node has ended: {:?}", self.ended.await);
    }

    /// Speaks as the other node, acknowledging whatever the leader has; without the secret.
    async fn forge(&self) {
        let (mut dialled, accepted) = pair().await;
        let stream = accepted.into_std().unwrap();
        self.peers.send(PeerConnection { stream, read: BytesMut::new() }).await.unwrap();
        let hello = Hello {
            from: self.other.to_string(),
            to: self.handle.address().to_string(),
            incarnation: 77,
            session: 1,
            feature_level: node::FEATURE_LEVEL,
            ..hello()
        };
        let _ = dialled.write_all(&with_magic(&hello.encode_to_vec())).await;
        loop {
            let own = self.handle.describe();
            let durable = own.last_index;
            for message in [
                Message::Report { commit: own.commit_index, last: durable },
                Message::Appended { durable, full: false, disk: 0, heard: None },
            ] {
                if dialled
                    .write_all(&framed(
                        own.epoch,
                        own.view.as_ref().map_or(Checksum(0), View::checksum),
                        body_of(&message),
                    ))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Puts something, and says whether the set that acknowledged it counts a node that holds nothing.
    async fn is_acknowledged_by_nobody(&self) -> bool {
        let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
        let mutation = Mutation { request: Some(mutation::Request::Put(put)) };
        let until = tokio::time::Instant::now() + PATIENCE;
        self.handle.mutate(mutation, until).await.expect("acknowledged").expect("not refused");
        let view = self.register.read(None).unwrap().expect("a view");
        view.in_sync.contains_key(&self.other)
    }
}

#[tokio::test]
async fn a_forged_peer_changes_nothing_and_without_a_proof_its_word_counts_as_a_copy() {
    for (rule, counted) in [(None, false), (Some(Rule::ProvePeers), true)] {
        // Looked at by the thread that starts the node.
        let scene = without(rule, scene);
        let acknowledged = tokio::select! {
            () = async { scene.forge().await; std::future::pending().await } => unreachable!(),
            acknowledged = scene.is_acknowledged_by_nobody() => acknowledged,
        };
        assert_eq!(acknowledged, counted, "without {rule:?}");
        scene.end().await;
    }
}

#[tokio::test]
async fn a_stranger_that_has_heard_of_a_far_epoch_does_not_stop_views() {
    let scene = scene();
    let (mut dialled, accepted) = pair().await;
    let stream = accepted.into_std().unwrap();
    scene.peers.send(PeerConnection { stream, read: BytesMut::new() }).await.unwrap();
    let from = scene.other.to_string();
    let hello = Hello { from, to: scene.handle.address().to_string(), incarnation: 77, ..hello() };
    dialled.write_all(&with_magic(&hello.encode_to_vec())).await.unwrap();
    let far = framed(Epoch(1 << 62), Checksum(1), body_of(&Message::Ping));
    let _ = dialled.write_all(&far).await;
    // The other node, which holds nothing, leaves the set: that takes a view.
    assert!(!scene.is_acknowledged_by_nobody().await);
    scene.end().await;
}
