//! Generated wire types: etcd's client API, what nodes say to each other, and what the controller asks a node.
//! Nothing is written by hand here; the texts are in `proto/`.
#![allow(missing_docs, clippy::all, clippy::pedantic, clippy::nursery)]

pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
pub mod replcluster {
    tonic::include_proto!("replcluster");
}

/// All of the above as an encoded `FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
