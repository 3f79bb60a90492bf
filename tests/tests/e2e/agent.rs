//! The agent's life: it starts, answers, dies, comes back, and leaves nothing.

use netfw_tests::{Agent, Lab, agent::FAILED};

#[test]
fn an_agent_answers_and_leaves_nothing_behind() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    agent.netfw(&["status"]);
    assert!(agent.json(&["status"]).is_object());
    // Dropping it checks what is left.
}

#[test]
fn an_agent_that_was_killed_starts_again() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    agent.kill();
    agent.refuses(FAILED, &["status"]);
    agent.start_again();
    agent.stop();
}
