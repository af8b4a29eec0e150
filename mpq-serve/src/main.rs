//! See the library.

fn main() -> std::process::ExitCode {
    mpq_serve::main()
}
