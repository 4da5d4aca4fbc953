"""Training: from a config and a run directory to a trained model. The loop, the step and what is in between come first.

loop            call after call of the train step: the numbers of the one before, hooks, checkpoint
step            one optimizer step, a pure function of state, batch and learning rate
losses          what is minimised, by name
regularisation  label smoothing, and noise on embeddings, for fine-tuning
target_logits   the loss of answers from the logits of their tokens alone
task_losses     the losses of labelled examples
trainable       which parameters are trained
depth           some of the layers, of parameters that hold them all
frozen          those of a run with an adapter that its checkpoints leave in another run
program         a config on a mesh, ready to run: shapes, layouts, jitted functions
feed            what the step takes, ready on the devices one call ahead
recorder        what the steps leave in the log
hooks           what is done between calls: held-out text, tasks, samples, profile
judged          the end before the last step, and the best checkpoint, by a metric of evaluations
profiling       the last of these
main            all of it together, through any number of interruptions
alone           the loop of a run that nobody watches, for what measures it
epochs          a length in epochs of the text, in steps
session         what a run is made of before its first step
resume          the checkpoint it goes on from, and what follows when one cannot be written
recovery        what is done when training goes wrong
branching       a run that begins with another one's checkpoint
starting        a run that begins with another one's parameters
origins         the checkpoint of another run that a config field names
critic_start    a critic that begins with a reward model's
new_symbols     the rows of special symbols that the other one's tokenizer lacks
executable      the compiled step in a file
catch_up        evaluations that a preempted run did not come to
report          what is said to the person who watches
"""
