"""What other trainers call their flags, and what to do here instead.

The names are those of Stable-Baselines3 and its zoo, CleanRL, Sample Factory, RLlib, PufferLib and
OpenAI's Baselines, with underscores. A line here completes "--name is unknown; ".
"""

from __future__ import annotations

import re

from sfrl.settings.algorithms import user_settings

_LOGS = (
    "use --log-to=wandb, trackio or module:Class; curves are in TensorBoard's files and "
    "metrics.jsonl in the run's folder in any case"
)
_FRAMES = "use --train-frames, which counts emulated frames: on Atari 4 for each decision"

_OF_TRAIN = {
    "use --env": "env_id env_name environment environment_name env_type gym_id game task",
    "use --num-workers=N and --envs-per-worker=K, which make N x K environments": (
        "num_envs n_envs nenvs n_env num_env num_environments env_num total_agents"
    ),
    "use --envs-per-worker": (
        "num_envs_per_worker num_envs_per_env_runner envs_per_process envs_per_actor env_batch_size"
    ),
    "use --num-workers": (
        "workers n_workers num_env_runners num_rollout_workers num_actors n_actors num_processes "
        "nproc n_jobs num_cpus n_cpus num_cpu num_proc"
    ),
    "use --num-splits": "worker_num_splits num_buffers",
    "use --num-policy-workers": "policy_workers_per_policy num_inference_workers",
    "use --threads-per-worker for environments that wait, and --num-workers for more cores": (
        "env_threads num_env_threads threads_per_env_runner"
    ),
    "use --slots-per-split": "num_batches_to_accumulate",
    "use --pin-workers": "set_workers_cpu_affinity cpu_affinity",
    "use --worker-nice": "default_niceness niceness nice",
    "use --env=module:Class or envpool:Id-v0, which are vectors": "batched_sampling",
    "use --env-timeout and --stall-timeout": (
        "heartbeat_interval heartbeat_reporting_interval timeout"
    ),
    "use --torch-threads": "num_threads n_threads num_learner_threads torch_num_threads",
    _FRAMES: (
        "total_timesteps n_timesteps timesteps timesteps_total total_steps max_steps max_timesteps "
        "num_timesteps train_for_env_steps total_frames num_frames frames num_env_steps "
        "stop_timesteps env_steps total_env_steps"
    ),
    "use --replay-size": "buffer_size replay_buffer_size memory_size replay_capacity",
    "use --updates-per-decision, optimizer steps for each decision": (
        "train_freq gradient_steps train_frequency replay_ratio utd_ratio update_to_data_ratio"
    ),
    "use --epsilon-frames, a number of frames": "exploration_fraction",
    "use --final-epsilon": "exploration_final_eps end_e",
    "use --target-every": "target_update_interval target_network_frequency",
    "use --tau": "polyak",
    "use --train-seconds": "train_for_seconds max_time max_seconds time_limit time_total_s",
    "use --rollout-length": (
        "n_steps num_steps nsteps rollout rollout_steps rollout_fragment_length unroll_length "
        "horizon_length bptt_horizon recurrence t_max steps_per_rollout"
    ),
    "use --batch-size, the decisions per optimizer step": (
        "minibatch_size sgd_minibatch_size mini_batch_size batchsize"
    ),
    "use --batch-size and --minibatches: a training batch has batch_size * minibatches decisions": (
        "train_batch_size train_batch_size_per_learner steps_per_batch"
    ),
    "use --minibatches": (
        "num_minibatches nminibatches n_minibatches num_mini_batch num_mini_batches "
        "num_batches_per_epoch"
    ),
    "use --epochs": (
        "update_epochs n_epochs num_epochs noptepochs num_sgd_iter ppo_epochs ppo_epoch k_epochs"
    ),
    "use --loss=appo, PPO's loss, or --loss=vtrace, IMPALA's": ("with_vtrace use_vtrace vtrace"),
    "use --learning-rate": "lr alpha step_size learning_rate_start adam_lr",
    "use --lr-schedule": "anneal_lr lr_anneal lr_decay use_lr_decay use_linear_lr_decay linear_lr",
    "use --gamma": "discount discounting discount_factor",
    "use --trace-lambda": "gae_lambda lam lambda lambda_ gae lmbda td_lambda vtrace_lambda",
    "use --entropy-coef": (
        "ent_coef entropy_coeff entropy_coefficient entropy_cost entropy_weight ent_coeff "
        "exploration_loss_coeff beta"
    ),
    "use --value-coef": (
        "vf_coef vf_coeff vf_loss_coeff value_loss_coeff value_loss_coef value_coeff vf_cost "
        "baseline_cost critic_coef"
    ),
    "use --ppo-clip": (
        "clip_coef clip_range cliprange clip_param clip_ratio ppo_clip_ratio clip_epsilon eps_clip "
        "clip epsilon_clip"
    ),
    "use --rho-clip": "vtrace_rho vtrace_rho_clip vtrace_clip_rho_threshold",
    "use --c-clip": "vtrace_c vtrace_c_clip",
    "use --max-grad-norm": "grad_clip clip_grad max_grad grad_norm_clipping grad_norm",
    "use --optimizer-eps": "eps adam_eps opt_eps epsilon rmsprop_eps optimizer_kwargs",
    "use --optimizer": "opt optim optimizer_class",
    "use --normalize-obs": "normalize_input normalize_observations norm_obs obs_norm",
    "use --normalize-advantages": "norm_adv normalize_advantage norm_advantage",
    "use --normalize-returns": "normalize_value norm_returns popart use_popart normalize_return",
    "use --reward-clip": "clip_rewards clip_reward reward_clipping",
    "use --max-policy-lag": "policy_lag max_lag",
    "there is none here; leave it out": (
        "target_kl kl_coeff kl_coef kl_loss_coeff clip_vloss clip_range_vf vf_clip_coef "
        "vf_clip_param ppo_clip_value"
    ),
    "use --model": (
        "policy network net arch net_arch model_name encoder encoder_type encoder_name policy_name "
        "policy_type features_extractor features_extractor_class activation_fn nonlinearity "
        "encoder_conv_architecture encoder_mlp_layers encoder_conv_mlp_layers decoder_mlp_layers"
    ),
    "use --value-encoder=shared or separate": (
        "actor_critic_share_weights share_features_extractor share_weights vf_share_layers"
    ),
    "use --action-bounds=clip or tanh": "continuous_tanh_scale squash_output clip_actions",
    "use --noise-correlation": "use_sde sde_sample_freq",
    "use --rnn and --rnn-size": "use_rnn use_lstm lstm recurrent rnn_type rnn_name lstm_size",
    "use --rnn-layers": "rnn_num_layers num_rnn_layers lstm_layers n_lstm_layers",
    "use --frameskip": "frame_skip env_frameskip action_repeat repeat_action frames_skip",
    "use --sticky-actions": "repeat_action_probability sticky sticky_action_probability",
    "use --episodic-life": "terminal_on_life_loss end_on_life_loss episode_life",
    "use --max-episode-frames for Atari, max_episode_steps at the registration of others": (
        "max_episode_steps max_episode_length max_num_frames_per_episode"
    ),
    "use --frame-stack, which Atari games do without: they are stacks of 4": (
        "framestack frame_stacks num_stack env_framestack stack"
    ),
    "use --env-kwargs, a JSON object": "env_config environment_config make_kwargs env_args",
    "use --wrappers": "env_wrapper wrapper env_wrappers wrapper_class wrapper_kwargs",
    "use --observe-last": "use_prev_action use_prev_reward lstm_use_prev_action",
    "use --device=cuda or --device=cpu; by default it is found": (
        "cuda use_cuda gpu gpus use_gpu num_gpus num_gpus_per_learner no_cuda accelerator"
    ),
    "use --precision": "mixed_precision amp fp16 bf16 half dtype",
    "use --serial, with which the same seed gives the same weights": (
        "torch_deterministic deterministic serial_mode reproducible"
    ),
    "use --run-dir, the run's folder": (
        "experiment exp experiment_name exp_name run_name name train_dir log_dir logdir log_path "
        "log_folder log save_dir save_path output output_dir out outdir tensorboard_log data_dir "
        "checkpoint_dir model_dir savedir xpid folder results_dir storage_path"
    ),
    _LOGS: (
        "track wandb with_wandb use_wandb wandb_project wandb_project_name wandb_entity "
        "wandb_group wandb_user wandb_job_type wandb_tags neptune comet mlflow logger tensorboard "
        "tb"
    ),
    "use --config=FILE, the config.json of a run": (
        "cfg cfg_file cfg_path conf conf_file config_file config_name config_path from_config "
        "load_config yaml yaml_file"
    ),
    "use --resume, with --run-dir if it is not the newest run": (
        "load load_model load_path load_checkpoint load_model_path restore resume_from restart "
        "restart_behavior trained_agent checkpoint checkpoint_path pretrained model_path"
    ),
    "checkpoints are always saved; --checkpoint-seconds says how often": (
        "save save_model save_freq save_interval save_every save_every_sec checkpoint_freq "
        "checkpoint_interval checkpoint_every checkpoint_frequency checkpoint_at_end"
    ),
    "use --keep-checkpoints": "save_total_limit keep_checkpoints_num num_checkpoints",
    "use --system": "algorithm algo method agent trainer learner_type async_rl",
    "use --report-seconds": (
        "log_interval log_freq log_every log_frequency print_freq report_interval summary_interval "
        "stats_interval experiment_summaries_interval"
    ),
    "use --video-every=10m, or afterwards enjoy.py": (
        "capture_video video record record_video save_video videos video_interval video_frequency"
    ),
    "watch or film what was trained: sfrl enjoy --window, or --video=FILE.mp4": (
        "render render_mode human enjoy play eval evaluate evaluation test watch eval_episodes "
        "eval_freq n_eval_episodes"
    ),
}

_OF_ENJOY = {
    "the environment is the run's; name the run with --run-dir": (
        "env env_id env_name environment gym_id game task algo algorithm system"
    ),
    "use --run-dir, the run's folder": (
        "run experiment exp experiment_name exp_name run_name exp_id train_dir log_dir logdir "
        "folder savedir xpid dir path"
    ),
    "use --checkpoint=latest, best or FILE": (
        "model model_path load load_model load_path load_checkpoint load_checkpoint_kind ckpt "
        "checkpoint_path load_best load_last_checkpoint best weights resume agent policy"
    ),
    "use --episodes": (
        "num_episodes n_episodes max_num_episodes n_eval_episodes eval_episodes games num_games"
    ),
    "use --max-steps": "n_timesteps max_num_frames num_steps steps max_episode_steps timesteps",
    "use --window, or --video=FILE.mp4": "render render_mode human show display watch no_render",
    "use --video=FILE.mp4 or FILE.gif": (
        "capture_video save_video record record_video video_path video_dir video_file output out "
        "gif video_name video_folder"
    ),
    "use --fps": "frame_rate framerate speed",
    "actions are sampled unless --deterministic is given": (
        "eval_deterministic greedy stochastic argmax sample"
    ),
    "the network plays on the CPU": "device cuda gpu num_gpus use_cuda",
}


def _by_name(names: dict[str, str]) -> dict[str, str]:
    """The remedy of each name."""
    return {name: remedy for remedy, line in names.items() for name in line.split()}


def _in_python(remedy: str) -> str:
    """For `sfrl.train`: its arguments are the flags, with underscores. Commands stay commands."""
    if "sfrl enjoy" in remedy:
        return remedy
    remedy = re.sub("--([a-z-]+)", lambda flag: flag[1].replace("-", "_"), remedy)
    return re.sub(r"=(\d+[smh])\b", r'="\1"', remedy)


OF_TRAIN = _by_name(_OF_TRAIN)
OF_PYTHON = {name: _in_python(remedy) for name, remedy in OF_TRAIN.items()} | {
    "callback": "use callbacks, a list of objects of classes that derive from sfrl.Callback"
}
OF_ENJOY = dict.fromkeys(
    (*user_settings(), *OF_TRAIN), "a checkpoint has the settings that it was trained with"
) | _by_name(_OF_ENJOY)
OF_EXPORT = dict.fromkeys(
    (*user_settings(), *OF_TRAIN), "a checkpoint has the settings that it was trained with"
) | _by_name(
    {
        "use --onnx=FILE.onnx": "output out output_file file path onnx_path save_path export_path",
        "name the run first: sfrl export RUN --onnx=FILE.onnx": (
            "run_dir run logdir log_dir experiment train_dir"
        ),
        "use --checkpoint=latest, best or FILE": "ckpt checkpoint_path load weights best",
    }
)
