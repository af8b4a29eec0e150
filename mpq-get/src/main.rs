//! The `mpq-get` program; see the library of the same name.

/// As in `mpq-serve`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    mpq_get::main()
}
