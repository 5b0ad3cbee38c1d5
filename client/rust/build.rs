//! Generates the messages and the stubs from the protos, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = "protos";
    println!("cargo::rerun-if-changed={protos}");
    tonic_prost_build::configure()
        .bytes(".") // pictures are shared, not copied, when a request is sent again
        .extern_path(".google.rpc", "::tonic_types::pb")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .compile_fds(protox::compile(
            ["alignserve/v1/align_service.proto"],
            [protos],
        )?)?;
    Ok(())
}
