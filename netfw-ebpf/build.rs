//! What the linker is to do with the programs.

fn main() {
    // Copies and fills of known size become loads and stores. By default the linker leaves them for
    // later, in an order that some kernel JIT compilers look for; all but copies between places that
    // cannot overlap then become calls, which go byte by byte.
    println!("cargo::rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    println!("cargo::rerun-if-changed=build.rs");
}
