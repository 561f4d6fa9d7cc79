//! Turns the `.proto` texts into Rust with `protox`, so that no `protoc` is needed on the machine.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    for file in ["etcd/rpc.proto", "replcluster/peer.proto", "replcluster/node.proto"] {
        compiler.open_file(file)?;
    }
    std::fs::write(out.join("descriptor.bin"), compiler.encode_file_descriptor_set())?;
    // Keys and values stay slices of the buffer they arrived in: no copy per request.
    tonic_prost_build::configure()
        .bytes(".mvccpb")
        .bytes(".etcdserverpb")
        .bytes(".replcluster")
        .generate_default_stubs(true)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
