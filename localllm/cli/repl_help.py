"""What `/?` prints in a conversation."""

HELP = """\
Available Commands:
  /set            Set session variables
  /show           Show model information
  /list           List the models on this machine
  /load <model>   Load another model
  /save <model>   Save this conversation as a model
  /clear          Clear session context
  /edit           Write the message in your editor
  /bye            Exit
  /?, /help       Help for a command
  /? shortcuts    Help for keyboard shortcuts

Use \"\"\" to begin a multi-line message.

"""

SET_HELP = """\
Available Commands:
  /set parameter <name> <value>  Set a parameter: seed, num_predict, top_k,
                                 top_p, min_p, temperature, repeat_penalty,
                                 repeat_last_n, presence_penalty,
                                 frequency_penalty, stop
  /set system <string>           Set system message
  /set history                   Enable history
  /set nohistory                 Disable history
  /set wordwrap                  Enable wordwrap
  /set nowordwrap                Disable wordwrap
  /set format json               Enable JSON mode; or a JSON schema, or the
                                 name of a file that holds one
  /set noformat                  Disable formatting
  /set verbose                   Show timings after each answer
  /set quiet                     Show no timings
  /set think [level]             Enable thinking: low, medium, high or max
  /set nothink                   Disable thinking

"""

SHOW_HELP = """\
Available Commands:
  /show info         Show details for this model
  /show license      Show model license
  /show modelfile    Show Modelfile for this model
  /show parameters   Show parameters for this model
  /show system       Show system message
  /show template     Show prompt template

"""

SHORTCUTS_HELP = """\
Available keyboard shortcuts:
  Ctrl + a            Move to the beginning of the line (Home)
  Ctrl + e            Move to the end of the line (End)
   Alt + b            Move back one word
   Alt + f            Move forward one word
  Ctrl + k            Delete the sentence after the cursor
  Ctrl + u            Delete the sentence before the cursor
  Ctrl + w            Delete the word before the cursor

  Ctrl + l            Clear the screen
  Ctrl + g            Write the message in your editor
  Ctrl + c            Stop the model from responding
  Ctrl + d            Exit (/bye)

"""
