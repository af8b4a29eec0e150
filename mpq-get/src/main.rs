//! The `mpq-get` program; see the library of the same name.

fn main() -> std::process::ExitCode {
    mpq_get::main()
}
